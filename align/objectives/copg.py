"""CoPG: off-policy policy gradient in which each completion is the other's baseline.

Contrastive Policy Gradient, Flet-Berliac et al. 2024, arXiv:2406.19185, eq. 7 to 9.

Differs from the paper: its eq. 10 and theorem 1 maximise, while the text around eq. 17 minimises,
which descends the wrong way; the loss here is the negative of eq. 9 and is minimised. Only pairs:
groups of more than two completions do not fit `PairInputs`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective, detached, logratios, present
from align.types import ObjectiveOutput, PairInputs


class CoPG(Objective, frozen=True):
    r"""L = -(R_chosen - R_rejected) h + (beta / 2) h^2,   h = rho_chosen - rho_rejected.

    With rho as in DPO and R = `score`, a reward in its own units; which side is which does not
    matter. Half of beta in the loss makes the whole of beta in the gradient, -(dR - beta h), so
    that nothing is detached; h = dR / beta is the minimum. This is ((dR - beta h)^2 - dR^2) /
    (2 beta), negative where it has learnt. Reward: beta rho.
    """

    name: Literal["copg"] = "copg"
    needs = frozenset({"reference", "score"})

    beta: float = Field(
        default=0.06, gt=0, description="Score per nat of log-ratio; stable from 0.03 to 0.1."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho, score = logratios(inputs.policy, inputs.reference), present(inputs.score)
        h = rho.chosen - rho.rejected
        gain = score.chosen - score.rejected
        return ObjectiveOutput(
            loss=self.beta / 2 * h**2 - gain * h,
            reward=detached(self.beta * rho.chosen, self.beta * rho.rejected),
            metrics={},
        )
