"""APO-zero on single completions: desirable ones up and others down, each against the reference.

Anchored Preference Optimization, D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 in the unpaired
form of TRL's KTO trainer (`apo_zero_unpaired`; not verified against the paper). KTO without its KL
term; the pair form is `anchored_zero`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_logratio
from align.types import GroupInputs, GroupOutput


class AnchoredZeroUnpaired(GroupObjective, frozen=True):
    r"""L = lambda_D (1 - sigmoid(r)) if desirable, else lambda_U sigmoid(r),   r = beta rho.

    With rho as in DPO. Which completions share a prompt plays no part. Reward: r.
    """

    name: Literal["anchored_zero_unpaired"] = "anchored_zero_unpaired"
    needs = frozenset({"reference", "label"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    desirable_weight: float = Field(
        default=1.0, gt=0, description="Weight of desirable completions, for rare ones."
    )
    undesirable_weight: float = Field(
        default=1.0, gt=0, description="Weight of undesirable completions, for rare ones."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions."""
        inputs = self.checked(inputs)
        reward, label = self.beta * group_logratio(inputs, inputs.reference), present(inputs.label)
        # Of two numbers torch.where makes float32, which is not what the fields say in float64.
        weights = torch.full_like(reward, self.undesirable_weight)
        weights = weights.masked_fill(label, self.desirable_weight)
        return GroupOutput(
            loss=weights * torch.sigmoid(torch.where(label, -reward, reward)),
            reward=reward.detach(),
            metrics={},
        )
