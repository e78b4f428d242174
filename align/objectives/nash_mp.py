"""Nash-MP: a proximal step of the KL-regularised preference game, on the policy's own samples.

Nash Mirror Prox, Tiapkin et al. 2025, arXiv:2505.19731; with a proximal anchor later versions call
it Nash-Prox. Pairs are fresh samples of the policy that is trained; who moves `anchor` (a frozen
copy or a moving average) is the loop's business.

Differs from the paper: this is the contrastive form, which we derived: on self-play pairs its
gradient is exactly -4 (beta + 1/eta) times the policy gradient of the paper's proximal step. The
paper's step is beta times our eta, as a review of it states its steps (second-hand).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective, detached, logratios, weighted_sum
from align.types import ObjectiveOutput, PairInputs


class NashMP(Objective, frozen=True):
    r"""L = (g_chosen - g_rejected - (p - 1/2))^2.

    g = (beta + 1/eta) log pi - beta log pi_ref - (1/eta) log pi_anchor
      = beta rho + a / eta

    With rho and a the summed log-ratios to `reference` and `anchor`, and p = P(chosen beats
    rejected), 1 unless `preference` is given. Equals (beta + 1/eta)^2 times INPO with eta
    = beta + 1/eta, tau = beta and the anchor as `previous`. Reward: g, in units of probability.
    """

    name: Literal["nash_mp"] = "nash_mp"
    needs = frozenset({"reference", "anchor"})
    accepts = frozenset({"preference"})

    beta: float = Field(
        default=0.1, gt=0, description="Probability per nat of log-ratio to pi_ref: the game's KL."
    )
    eta: float = Field(
        default=2.0, gt=0, description="Step from the anchor; up to 2 every exact step contracts."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        a = logratios(inputs.policy, inputs.anchor)
        g = weighted_sum(self.beta, rho, 1 / self.eta, a)
        p = 1.0 if inputs.preference is None else inputs.preference
        return ObjectiveOutput(
            loss=(g.chosen - g.rejected - (p - 0.5)) ** 2,
            reward=detached(g.chosen, g.rejected),
            metrics={},
        )
