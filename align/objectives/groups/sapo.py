"""SAPO: a soft gate on each token's ratio in place of the clip, steeper for bad completions.

Soft Adaptive Policy Optimization, Gao et al. 2025, arXiv:2511.20347, as in TRL 1.16 (equation
numbers not verified).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.tokens import ratio, token_logratio
from align.types import GroupInputs, GroupOutput


class SAPO(GroupAdvantage, frozen=True):
    r"""L = -mean_t ((4 / tau) sigmoid(tau (u_t - 1)) A - kl_beta k3_t).

    tau = temperature_pos where A > 0, else temperature_neg

    A, u and k3 as in `group_relative`. The slope in u is 1 at u = 1, as without a gate, and falls
    off on both sides; towards tau = 0 there is no gate. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["sapo"] = "sapo"

    temperature_pos: float = Field(
        default=1.0, gt=0, description="Steepness of the gate where A > 0."
    )
    temperature_neg: float = Field(
        default=1.05, gt=0, description="Steepness of the gate elsewhere."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage and what compares."""
        inputs = self.checked(inputs)
        advantages = self.advantages(inputs)
        value = advantages.value[:, None]
        u = ratio(token_logratio(inputs.policy, present(inputs.previous)))
        # Of two numbers torch.where makes float32, which is not what the fields say in float64.
        tau = u.new_tensor([self.temperature_neg, self.temperature_pos])[(value > 0).long()]
        gate = 4 / tau * torch.sigmoid(tau * (u - 1))
        return self.output(inputs, gate * value, inputs.policy.lengths(), advantages, {})
