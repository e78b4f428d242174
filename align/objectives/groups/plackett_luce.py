"""Plackett-Luce: DPO over a whole ranking of a prompt's completions.

Rafailov et al. 2023, arXiv:2305.18290, appendix on the Plackett-Luce model (its equation number is
not verified). The ranking is that of `score`.

Where the paper is silent: completions of equal score are not compared. Each stands against all that
have a lower score, so a tie says nothing about the two and the order of the rows plays no part.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_logratio, group_sum, ranked_pairs
from align.types import GroupInputs, GroupOutput


class PlackettLuce(GroupObjective, frozen=True):
    r"""L = -sum_i log(exp(r_i) / (exp(r_i) + sum_(j below i) exp(r_j))),   r = beta rho.

    Per prompt, with rho as in DPO and "below" by `score`; it stands at each of its completions. Two
    completions are DPO; without a pair of different scores the loss is 0. Reward: r.
    """

    name: Literal["plackett_luce"] = "plackett_luce"
    needs = frozenset({"reference", "score"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, and which of their prompts compare anything."""
        inputs = self.checked(inputs)
        group, rho = inputs.group, group_logratio(inputs, inputs.reference)
        reward = self.beta * rho
        below = ranked_pairs(present(inputs.score), group)
        itself = torch.eye(len(rho), dtype=torch.bool, device=rho.device)
        against = (reward[None, :] - reward[:, None]).masked_fill(~(below | itself), -torch.inf)
        loss = group_sum(against.logsumexp(dim=1), group)
        compares = group_sum(below.sum(dim=1).to(rho.dtype), group) > 0
        return GroupOutput(
            loss=loss[group],
            reward=reward.detach(),
            metrics={"compares": compares[group].to(rho.dtype)},
        )
