"""RLOO: the mean return of the prompt's other completions is each one's baseline.

Ahmadian et al. 2024, arXiv:2402.14740, as in TRL 1.16: KL to the reference stands in the return,
and the ratio of the whole completion is clipped as PPO does. `normalize_advantages`, which TRL has
off, is left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_sum
from align.objectives.groups.tokens import (
    clipped_gain,
    ratio,
    stopped_by_clip,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput


class RLOO(GroupObjective, frozen=True):
    r"""L = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A),   w = pi(y|x) / pi_previous(y|x).

    A_i = G_i - mean over the prompt's other completions of G
    G = R - kl_beta (log pi_previous(y|x) - log pi_ref(y|x)),   R = `score`

    On-policy and with rewards alone the gradient is REINFORCE's. One completion alone has no
    baseline and a loss of 0. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["rloo"] = "rloo"

    kl_beta: float = Field(
        default=0.05,
        ge=0,
        description="Return taken off per nat of previous over pi_ref; 0 needs no reference.",
    )
    clip_low: float = Field(default=0.2, gt=0, description="Largest move of w below 1.")
    clip_high: float = Field(default=0.2, gt=0, description="Largest move of w above 1.")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on kl_beta
        """`previous` and `score`; `reference` where kl_beta > 0."""
        return frozenset({"previous", "score"} | ({"reference"} if self.kl_beta > 0 else set()))

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, which are stopped, what compares."""
        inputs = self.checked(inputs)
        mask, previous = inputs.policy.mask, present(inputs.previous)
        returns = present(inputs.score)
        if self.kl_beta > 0:
            kl = token_sum(token_logratio(previous, present(inputs.reference)), mask)
            returns = returns - self.kl_beta * kl
        count = group_sum(torch.ones_like(returns), inputs.group)[inputs.group]
        others = group_sum(returns, inputs.group)[inputs.group] - returns
        advantage = torch.where(count > 1, returns - others / (count - 1).clamp(min=1), 0.0)
        logratio = token_sum(token_logratio(inputs.policy, previous), mask)
        w = ratio(logratio)
        return GroupOutput(
            loss=-clipped_gain(advantage, w, self.clip_low, self.clip_high),
            reward=logratio.detach(),
            metrics={
                "advantage": advantage,
                "clipped": stopped_by_clip(advantage, w, self.clip_low, self.clip_high),
                "compares": (count > 1).to(w.dtype),
            },
        )
