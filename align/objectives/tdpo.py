"""TDPO: DPO with the KL of every token's distribution in the margin.

Token-level DPO, Zeng et al. 2024, arXiv:2404.11999, as in the authors' code
(github.com/Vance0124/Token-level-Direct-Preference-Optimization, `tdpo_loss`); the paper's equation
numbers are not verified.

Differs from the authors' code: of `tdpo2` the reward is what is compared, with alpha on the
divergence; there it is beta (rho + D) for both forms. Soft labels are added, as in DPO.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios, present
from align.types import Logps, ObjectiveOutput, Pair, PairInputs


class TDPO(Objective, frozen=True):
    r"""L = -p log sigmoid(m) - (1-p) log sigmoid(-m'),   D(y) = sum_t KL(pi_ref || pi) at y_t.

    tdpo1: m = m' = beta (rho_chosen - rho_rejected) - beta (D_rejected - D_chosen).
    tdpo2: m = beta (rho_chosen - rho_rejected) - alpha beta (D_rejected - stop(D_chosen)), and m'
    is the same number, with the gradient stopped at D_rejected instead: there it is the better one.

    With rho = log pi(y|x) - log pi_ref(y|x), and p = P(chosen beats rejected), 1 unless
    `preference` is given. Reward: beta (rho + a D), with a = 1 in tdpo1 and alpha in tdpo2.
    """

    name: Literal["tdpo"] = "tdpo"
    needs = frozenset({"reference"})
    accepts = frozenset({"preference"})
    vocabulary = frozenset({"divergence"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    form: Literal["tdpo1", "tdpo2"] = Field(
        default="tdpo2", description="Whether the better side's divergence has gradient: tdpo1."
    )
    alpha: float = Field(
        default=0.5, ge=0, description="Of tdpo2: weight of the divergences; 0 is DPO."
    )

    @model_validator(mode="after")
    def _alpha_has_a_reader(self) -> Self:
        if self.form == "tdpo1" and self.alpha != 0.5:
            raise ValueError(f"`alpha` is {self.alpha:g}, but only `form: tdpo2` reads it")
        return self

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs, and the divergence of each side [nats, summed]."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        far = Pair(_divergence(inputs.policy.chosen), _divergence(inputs.policy.rejected))
        weight = 1.0 if self.form == "tdpo1" else self.alpha
        still = far if self.form == "tdpo1" else detached(far.chosen, far.rejected)
        gap = rho.chosen - rho.rejected
        margin = self.beta * (gap - weight * (far.rejected - still.chosen))
        flipped = self.beta * (gap - weight * (still.rejected - far.chosen))
        p = 1.0 if inputs.preference is None else inputs.preference
        return ObjectiveOutput(
            loss=p * softplus(-margin) + (1 - p) * softplus(flipped),
            reward=detached(
                self.beta * (rho.chosen + weight * far.chosen),
                self.beta * (rho.rejected + weight * far.rejected),
            ),
            metrics={
                "divergence/chosen": far.chosen.detach(),
                "divergence/rejected": far.rejected.detach(),
            },
        )


def _divergence(policy: Logps) -> Tensor:
    """[B] nats: the sum over completion tokens."""
    return Logps(present(policy.divergence), policy.mask).total()
