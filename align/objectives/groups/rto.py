"""RTO: token rewards of a finished DPO policy, maximised by clipped policy gradient.

Zhong et al. 2024, arXiv:2404.18922 ("DPO Meets PPO"): the token rewards and the clip are those of
the authors' code.

Differs from it: there is no critic and no generalised advantage estimation. A token's advantage is
its reward-to-go less the mean return of the prompt's other completions, so a prompt wants two or
more; one alone has no baseline and a loss of 0. The reward model's share is 1 as in the code.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_sum
from align.objectives.groups.tokens import (
    clipped_gain,
    is_last,
    ratio,
    stopped_by_clip,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput


class RTO(GroupObjective, frozen=True):
    r"""L = -mean_t min(u_t A_t, clip(u_t, 1 - clip, 1 + clip) A_t),   u = pi / pi_previous.

    A_t = sum_(s >= t) r_s - mean over the prompt's other completions of their sum_s r_s
    r_t = clip(guide_beta log(pi_guide / pi_ref), +- guide_clip) - kl_beta log(pi_previous / pi_ref)
          + [t is last] clip(R, +- score_clip)

    With ratios of tokens, R = `score`, and `guide` the finished DPO policy. Rewards have no
    gradient. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["rto"] = "rto"
    needs = frozenset({"reference", "previous", "guide", "score"})

    guide_beta: float = Field(
        default=0.05, ge=0, description="Reward per nat of the guide's log-ratio; 0 is plain RLHF."
    )
    guide_clip: float = Field(default=0.05, gt=0, description="Largest token reward of the guide.")
    kl_beta: float = Field(
        default=0.01, ge=0, description="Reward taken off per nat of previous over pi_ref."
    )
    score_clip: float = Field(default=10.0, gt=0, description="Largest score that counts.")
    clip: float = Field(default=0.2, gt=0, description="Largest move of u from 1.")

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, their return and the share of stopped tokens."""
        inputs = self.checked(inputs)
        mask, previous = inputs.policy.mask, present(inputs.previous)
        reward = self.token_rewards(inputs)
        to_go = reward.flip(1).cumsum(dim=1).flip(1)
        returns = reward.sum(dim=1)
        count = group_sum(torch.ones_like(returns), inputs.group)[inputs.group]
        others = group_sum(returns, inputs.group)[inputs.group] - returns
        advantage = to_go - (others / (count - 1).clamp(min=1))[:, None]
        advantage = torch.where((count > 1)[:, None], advantage, 0.0)
        logratio = token_logratio(inputs.policy, previous)
        u = ratio(logratio)
        gain = clipped_gain(advantage, u, self.clip, self.clip)
        stopped = stopped_by_clip(advantage, u, self.clip, self.clip)
        lengths = inputs.policy.lengths().to(gain.dtype)
        return GroupOutput(
            loss=-token_sum(gain, mask) / lengths,
            reward=token_sum(logratio, mask).detach(),
            metrics={
                "return": returns,
                "clipped": token_sum(stopped, mask) / lengths,
            },
        )

    def token_rewards(self, inputs: GroupInputs) -> Tensor:
        """[N, T]: r_t of the formula, 0 where masked, of checked inputs."""
        reference = present(inputs.reference)
        of_guide = self.guide_beta * token_logratio(present(inputs.guide), reference)
        kl = token_logratio(present(inputs.previous), reference)
        score = present(inputs.score).clamp(-self.score_clip, self.score_clip)
        reward = of_guide.clamp(-self.guide_clip, self.guide_clip) - self.kl_beta * kl
        return reward + is_last(inputs.policy.mask) * score[:, None]
