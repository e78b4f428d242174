"""SPO: a Hedge step of self-play, regressing log-ratios on win rates within the policy's samples.

"A Minimaximalist Approach to RLHF" (Self-Play Preference Optimization), Swamy et al. 2024,
arXiv:2401.04056. Its guarantee, the minimax winner, is for the average over rounds; the last policy
may cycle, unless tau > 0.

Differs from the paper: that trains any policy optimiser on the win rates; here the step is the
pairwise regression whose minimum on all pairs is the exact Hedge step (we derived it), and tau adds
INPO's pull to pi_ref. eta is the inverse of `inpo`'s: here it multiplies the win rates.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from align.objectives.base import Objective, detached, logratios, present, weighted_sum
from align.types import ObjectiveOutput, PairInputs


class SPO(Objective, frozen=True):
    r"""L = (g_chosen - g_rejected - eta (P_chosen - P_rejected))^2.

    g = log pi - eta tau log pi_ref - (1 - eta tau) log pi_previous
      = eta tau rho + (1 - eta tau) d

    With rho and d the summed log-ratios to `reference` (read only where tau > 0) and `previous`,
    and P_y = `score`, the share of the other samples of its prompt that y beats. Reward: g / eta.
    """

    name: Literal["spo"] = "spo"
    scores_are_win_rates = True

    eta: float = Field(
        default=1.0, gt=0, description="Nats of log-ratio per unit of win rate: the Hedge step."
    )
    tau: float = Field(
        default=0.0, ge=0, description="Pull to pi_ref, at most 1/eta; 0 needs no reference."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on tau
        """`previous` and `score`; `reference` where tau > 0."""
        return frozenset({"previous", "score"} | ({"reference"} if self.tau > 0 else set()))

    @model_validator(mode="after")
    def _weights_of_a_mean(self) -> Self:
        if self.tau > 1 / self.eta:
            raise ValueError(
                f"`tau` is {self.tau:g}, but must be at most 1 / `eta`, {1 / self.eta:g}"
            )
        return self

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        g, win_rate = logratios(inputs.policy, inputs.previous), present(inputs.score)
        if self.tau > 0:
            rho, share = logratios(inputs.policy, inputs.reference), self.eta * self.tau
            g = weighted_sum(share, rho, 1 - share, g)
        target = self.eta * (win_rate.chosen - win_rate.rejected)
        return ObjectiveOutput(
            loss=(g.chosen - g.rejected - target) ** 2,
            reward=detached(g.chosen / self.eta, g.rejected / self.eta),
            metrics={},
        )
