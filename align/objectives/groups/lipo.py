"""LiPO-lambda: every pair of a prompt's completions, weighed by what swapping them would cost.

Listwise Preference Optimization, Liu et al. 2024, arXiv:2402.01878 (LiPO-lambda; the equation
number is not verified), after LambdaLoss. Weights are constants: ranks have no gradient.

Where the paper is silent: at the start all rewards are 0, and ranks undefined. Equal rewards are
ranked by `score`, the higher first; what is equal in both shares the mean of its ranks. So nothing
hangs on the order of the rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from align.errors import DataError
from align.objectives.base import present
from align.objectives.groups.base import (
    GroupObjective,
    group_logratio,
    group_sum,
    ranked_pairs,
    same_group,
)
from align.objectives.refusals import refuse
from align.types import GroupInputs, GroupOutput

LARGEST_SCORE = 60.0  # 2^score is a gain: a raw reward of hundreds would be nothing but overflow


class LiPO(GroupObjective, frozen=True):
    r"""L = -sum_(i over j) Delta_ij log sigmoid(r_i - r_j),   r = beta rho.

    Delta_ij = |2^score_i - 2^score_j| |1 / log2(1 + rank_i) - 1 / log2(1 + rank_j)|

    Per prompt, over its pairs of different `score`, with rho as in DPO and ranks from 1 by r; it
    stands at each of its completions. With `weight: one` Delta is 1, and the loss DPO on all pairs;
    two completions are DPO times Delta. Reward: r.
    """

    name: Literal["lipo"] = "lipo"
    needs = frozenset({"reference", "score"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    weight: Literal["lambda", "one"] = Field(
        default="lambda", description="What a pair weighs: Delta, for scores around 0 to 1; or 1."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, and which of their prompts compare anything.

        Raises:
            DataError: a score is above 60 with `weight: lambda`, and as `checked` says.
        """
        inputs = self.checked(inputs)
        group, score = inputs.group, present(inputs.score)
        rho = group_logratio(inputs, inputs.reference)
        reward = self.beta * rho
        pairs = ranked_pairs(score, group)
        losses = softplus(reward[None, :] - reward[:, None])
        if self.weight == "lambda":
            losses = losses * _deltas(reward.detach(), score, group)
        loss = group_sum(losses.masked_fill(~pairs, 0.0).sum(dim=1), group)
        compares = group_sum(pairs.sum(dim=1).to(rho.dtype), group) > 0
        return GroupOutput(
            loss=loss[group],
            reward=reward.detach(),
            metrics={"compares": compares[group].to(rho.dtype)},
        )


def _deltas(reward: Tensor, score: Tensor, group: Tensor) -> Tensor:
    """[N, N]: Delta of the formula."""
    refuse(
        score > LARGEST_SCORE,
        lambda row: DataError(
            f"Completion {row} of this batch has the score {float(score[row]):g}, but `lipo` takes "
            f"2^score for its gain: bring scores to a scale of about 0 to 1 (at most "
            f"{LARGEST_SCORE:g}), or write weight: one."
        ),
    )
    gain = torch.exp2(score)
    discount = 1 / torch.log2(1 + _ranks(reward, score, group))
    return (gain[:, None] - gain).abs() * (discount[:, None] - discount).abs()


def _ranks(reward: Tensor, score: Tensor, group: Tensor) -> Tensor:
    """[N]: ranks from 1 within each group, by reward, then score; the mean of a tie's ranks."""
    same, level = same_group(group), reward[None, :] == reward[:, None]
    ahead = (reward[None, :] > reward[:, None]) | (level & (score[None, :] > score[:, None]))
    tied = level & (score[None, :] == score[:, None])  # each with itself too
    before = (same & ahead).sum(dim=1).to(reward.dtype)
    return before + ((same & tied).sum(dim=1).to(reward.dtype) + 1) / 2
