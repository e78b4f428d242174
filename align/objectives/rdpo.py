"""rDPO ("robust DPO"): DPO whose mean over randomly flipped labels is the loss on clean labels.

Chowdhury, Kini and Natarajan 2024, arXiv:2403.00409; TRL's `robust`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios
from align.types import ObjectiveOutput, PairInputs


class RDPO(Objective, frozen=True):
    r"""L = (-(1-eps) log sigmoid(m) + eps log sigmoid(-m)) / (1 - 2 eps),   m as in DPO.

    With eps = `flip_probability`. Unbounded below: as m grows L tends to -eps/(1-2 eps) m, so
    losses turn negative, margins run on, and training has to be stopped early. Reward: beta rho.
    """

    name: Literal["rdpo"] = "rdpo"
    needs = frozenset({"reference"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    flip_probability: float = Field(
        default=0.1, ge=0, lt=0.5, description="P(recorded order is the wrong one); 0 is DPO."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        margin = self.beta * (rho.chosen - rho.rejected)
        eps = self.flip_probability
        return ObjectiveOutput(
            loss=((1 - eps) * softplus(-margin) - eps * softplus(margin)) / (1 - 2 * eps),
            reward=detached(self.beta * rho.chosen, self.beta * rho.rejected),
            metrics={},
        )
