"""INPO: one step of mirror descent towards the Nash policy of the KL-regularised preference game.

Iterative Nash Policy Optimization, Zhang et al. 2024, arXiv:2407.00617 (the loss is the paper's; no
equation number is at hand). The theorem holds when both completions are independent samples of
`previous`; the paper's own best-against-worst selection of 8 is not covered by it.

Differs from the paper: `preference` gives soft labels, which have the same expected gradient with
less noise; without it the labels are the paper's hard ones. A public trainer of this name computes
SPPO's loss per completion instead.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from align.objectives.base import Objective, detached, logratios, weighted_sum
from align.types import ObjectiveOutput, PairInputs


class INPO(Objective, frozen=True):
    r"""L = (g_chosen - g_rejected - (p - 1/2) / eta)^2.

    g = log pi - (tau/eta) log pi_ref - (1 - tau/eta) log pi_previous
      = (tau/eta) rho + (1 - tau/eta) d

    With rho and d the summed log-ratios to `reference` and `previous`, and p = P(chosen beats
    rejected), 1 unless `preference` is given. At tau = eta this is IPO. Reward: g.
    """

    name: Literal["inpo"] = "inpo"
    needs = frozenset({"reference", "previous"})
    accepts = frozenset({"preference"})

    eta: float = Field(
        default=0.005, gt=0, description="1/step: a sure label aims at a gap of 1/(2 eta) nats."
    )
    tau: float = Field(
        default=0.005 / 3, gt=0, description="Pull to pi_ref, at most eta; the paper's is eta/3."
    )

    @model_validator(mode="after")
    def _weights_of_a_mean(self) -> Self:
        if self.tau > self.eta:
            raise ValueError(f"`tau` is {self.tau:g}, but must be at most `eta`, {self.eta:g}")
        return self

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        d = logratios(inputs.policy, inputs.previous)
        share = self.tau / self.eta
        g = weighted_sum(share, rho, 1 - share, d)
        p = 1.0 if inputs.preference is None else inputs.preference
        return ObjectiveOutput(
            loss=(g.chosen - g.rejected - (p - 0.5) / self.eta) ** 2,
            reward=detached(g.chosen, g.rejected),
            metrics={},
        )
