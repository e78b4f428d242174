"""IPO: least squares on the log-ratio gap, so that sure preferences still end at a finite margin.

Azar et al. 2023, arXiv:2310.12036, eq. 17. Two conventions are in use and differ by about T^2 at
equal tau: sums over tokens (the paper; the DPO authors' code; OpenRLHF) and means (TRL's `ipo`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective, detached, logratios
from align.types import ObjectiveOutput, PairInputs


class IPO(Objective, frozen=True):
    r"""L = (rho_chosen - rho_rejected - (p - 1/2) / tau)^2.

    With rho as in DPO, or rho / |y| where `length_normalised`, and p = P(chosen beats rejected), 1
    unless `preference` is given: then the gap aimed at is 1 / (2 tau). Reward: that rho.
    """

    name: Literal["ipo"] = "ipo"
    needs = frozenset({"reference"})
    accepts = frozenset({"preference"})

    tau: float = Field(
        default=0.1, gt=0, description="Pull to pi_ref: sure labels aim at a gap of 1/(2 tau) nats."
    )
    length_normalised: bool = Field(
        default=False, description="Compare nats per token, as TRL does, instead of nats."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        chosen, rejected = rho.chosen, rho.rejected
        if self.length_normalised:
            chosen = chosen / inputs.policy.chosen.lengths()
            rejected = rejected / inputs.policy.rejected.lengths()
        p = 1.0 if inputs.preference is None else inputs.preference
        return ObjectiveOutput(
            loss=(chosen - rejected - (p - 0.5) / self.tau) ** 2,
            reward=detached(chosen, rejected),
            metrics={},
        )
