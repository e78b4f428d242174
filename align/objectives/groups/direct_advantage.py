"""Direct Advantage: the log-ratio of each reasoning step is regressed on its advantage.

Direct Advantage Policy Optimization, 2024, arXiv:2412.18279 (the paper's DAPO; not ByteDance's).
The 1/2 and the advantage over beta follow from the gradient in the paper's text; the displayed
equation, and how its critic estimates the advantage, are not verified: here it is the data's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_logratio
from align.types import GroupInputs, GroupOutput


class DirectAdvantage(GroupObjective, frozen=True):
    r"""L = 1/2 (A / beta - rho)^2.

    A row is a single step: its prompt is the state (question and steps so far), its completion the
    next step, its `advantage` A how much better the state behind it is than was to be expected. rho
    as in DPO, over the step's tokens. Nothing but A makes up for the prompt: centre it per state.
    Reward: beta rho, an estimate of A.
    """

    name: Literal["direct_advantage"] = "direct_advantage"
    needs = frozenset({"reference", "advantage"})

    beta: float = Field(
        default=0.01, gt=0, description="Advantage per nat of log-ratio; 0.002 to 0.1 in the paper."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N steps."""
        inputs = self.checked(inputs)
        rho = group_logratio(inputs, inputs.reference)
        return GroupOutput(
            loss=0.5 * (present(inputs.advantage) / self.beta - rho) ** 2,
            reward=self.beta * rho.detach(),
            metrics={},
        )
