"""WPO: DPO whose pairs count by how likely the policy itself would be to write them.

Weighted Preference Optimization, Zhou et al. 2024, arXiv:2406.11827. A completion's weight is its
length-normalised probability; with alignment, eq. 2 (as TRL 1.16 cites it for `use_weighting`),
each token's probability is divided by the one that a draw of the policy has on average. Without it
every weight is at most 1, and less where the policy is unsure.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field
from torch import Tensor

from align.objectives.base import Objective, present
from align.objectives.dpo import DPO
from align.types import Logps, ObjectiveOutput, Pair, PairInputs, at_least_float32

Alignment: TypeAlias = Literal["none", "sampled"]


class WPO(Objective, frozen=True):
    r"""L = w_chosen w_rejected L_DPO,   w = exp((1/|y|) sum_t (log pi(y_t) - c_t)), a constant.

    With c_t = log sum_v pi(v)^2 over the vocabulary at y_t where `alignment` is `sampled`, else 0.
    No gradient flows through w. `preference` softens L_DPO. Reward: beta rho, as in DPO.
    """

    name: Literal["wpo"] = "wpo"
    needs = frozenset({"reference"})
    accepts = frozenset({"preference"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    alignment: Alignment = Field(
        default="none",
        description="sampled: tokens count against sum_v p(v)^2, as in TRL's use_weighting.",
    )

    @property
    def vocabulary(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on a field
        """`collision` where weights are aligned."""
        return read_by_weights(self.alignment)

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs, and their weights."""
        inputs = self.checked(inputs)
        dpo = DPO(beta=self.beta)(inputs)
        weight = pair_weights(inputs.policy, self.alignment)
        return ObjectiveOutput(
            loss=weight.chosen * weight.rejected * dpo.loss,
            reward=dpo.reward,
            metrics={"weights/chosen": weight.chosen, "weights/rejected": weight.rejected},
        )


def read_by_weights(alignment: Alignment) -> frozenset[str]:
    """What `pair_weights` needs of the vocabulary."""
    return frozenset({"collision"}) if alignment == "sampled" else frozenset()


def pair_weights(policy: Pair[Logps], alignment: Alignment) -> Pair[Tensor]:
    """[B] each, detached: WPO's weight of each completion."""

    def of_side(logps: Logps) -> Tensor:
        token = at_least_float32(logps.token.detach())
        if alignment == "sampled":
            token = token - at_least_float32(present(logps.collision))
        return Logps(token, logps.mask).average().exp()

    return Pair(of_side(policy.chosen), of_side(policy.rejected))
