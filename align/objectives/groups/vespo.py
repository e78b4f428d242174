"""VESPO: likelihood by advantage, times a smooth weight of the whole completion's ratio.

Variational Sequence-Level Soft Policy Optimization, Shen et al. 2026, arXiv:2602.10693, as in TRL
1.16 (equation numbers not verified).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.token_mean import TokenMean
from align.objectives.groups.tokens import (
    LARGEST_LOG_RATIO,
    token_logps,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput

LEAST_LOG_RATIO = math.log(1e-8)  # nats of a completion; the authors' constant, through TRL


class VESPO(TokenMean, GroupAdvantage, frozen=True):
    r"""L = -sum_t (sg[phi(w)] A log pi(y_t) - kl_beta k3_t) / mean tokens.

    phi(w) = w^k exp(lambda (1 - w)),   w = pi(y|x) / pi_previous(y|x)

    k and lambda are k_pos and lambda_pos where A >= 0, else k_neg and lambda_neg; log w lies within
    log 1e-8 and 20, and a token's share of it within 20. A and k3 as in `group_relative`, the
    divisor as in `dapo`. phi is 1 on-policy and largest at w = k / lambda. A value of this loss
    says nothing. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["vespo"] = "vespo"

    k_pos: float = Field(default=2.0, ge=0, description="How fast phi falls towards w = 0; A >= 0.")
    lambda_pos: float = Field(
        default=3.0, gt=0, description="How fast phi falls for large w; A >= 0."
    )
    k_neg: float = Field(default=3.0, ge=0, description="The same as k_pos where A < 0.")
    lambda_neg: float = Field(default=2.0, gt=0, description="The same as lambda_pos where A < 0.")

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, phi, what compares."""
        inputs = self.checked(inputs)
        advantages = self.advantages(inputs)
        weight = self.weight(inputs, advantages.value)
        return self.output(
            inputs,
            (weight * advantages.value)[:, None] * token_logps(inputs.policy),
            self.mean_tokens(inputs),
            advantages,
            {"weight": weight},
        )

    def weight(self, inputs: GroupInputs, advantage: Tensor) -> Tensor:
        """[N]: phi of checked inputs, without gradient."""
        logratio = token_logratio(inputs.policy, present(inputs.previous)).detach()
        kept = logratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        log_w = token_sum(kept, inputs.policy.mask).clamp(LEAST_LOG_RATIO, LARGEST_LOG_RATIO)
        good = (advantage >= 0).long()
        k = log_w.new_tensor([self.k_neg, self.k_pos])[good]
        rate = log_w.new_tensor([self.lambda_neg, self.lambda_pos])[good]
        return (k * log_w + rate * (1 - log_w.exp())).exp()
