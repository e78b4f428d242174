"""GMPO: the geometric mean of a completion's ratios, each clipped on its own before the mean.

Geometric-Mean Policy Optimization, 2025, arXiv:2507.20673, as in the experimental trainer of TRL
1.16 (equation numbers not verified).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.tokens import mean_logratio, ratio, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput


class GMPO(GroupAdvantage, frozen=True):
    r"""L = -A exp(mean_t c_t) + kl_beta mean_t k3_t.

    c_t = min(log u_t, clip_high) where A > 0, else max(log u_t, -clip_low)

    A, u and k3 as in `group_relative`; the clip is in nats. Where it stops nothing it is `gspo`
    without a clip. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["gmpo"] = "gmpo"

    clip_low: float = Field(default=0.4, gt=0, description="Nats of log u below 0 that count.")
    clip_high: float = Field(default=0.4, gt=0, description="Nats of log u above 0 that count.")

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, share of stopped tokens, what compares."""
        inputs = self.checked(inputs)
        advantages, policy = self.advantages(inputs), inputs.policy
        logratio = token_logratio(policy, present(inputs.previous))
        good = advantages.value[:, None] > 0
        kept = torch.where(
            good, logratio.clamp(max=self.clip_high), logratio.clamp(min=-self.clip_low)
        )
        gain = advantages.value * ratio(mean_logratio(kept, policy))
        stopped = ((kept != logratio) & (advantages.value != 0)[:, None]).to(gain.dtype)
        return self.output(
            inputs,
            gain[:, None].expand_as(policy.mask),
            policy.lengths(),
            advantages,
            {"clipped": token_sum(stopped, policy.mask) / policy.lengths()},
        )
