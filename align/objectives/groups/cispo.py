"""CISPO: likelihood of each token by its advantage, times a ratio that is cut and has no gradient.

MiniMax-M1, 2025, arXiv:2506.13585, as in TRL 1.16: the ratio is cut from above alone, at ScaleRL's
5 (arXiv:2510.13786, as TRL quotes it). Equation numbers not verified.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.token_mean import TokenMean
from align.objectives.groups.tokens import ratio, token_logps, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput


class CISPO(TokenMean, GroupAdvantage, frozen=True):
    r"""L = -sum_t (sg[min(u_t, largest_ratio)] A log pi(y_t) - kl_beta k3_t) / mean tokens.

    A, u and k3 as in `group_relative`, the divisor as in `dapo`. No token is without gradient
    because its ratio has moved; on-policy the gradient is REINFORCE's with A. A value of this loss
    says nothing. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["cispo"] = "cispo"

    largest_ratio: float = Field(
        default=5.0, gt=0, description="Largest u that counts: TRL's epsilon_high, 1 included."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, share of cut ratios, what compares."""
        inputs = self.checked(inputs)
        advantages = self.advantages(inputs)
        u = ratio(token_logratio(inputs.policy, present(inputs.previous))).detach()
        cut = u.clamp(max=self.largest_ratio)
        return self.output(
            inputs,
            cut * advantages.value[:, None] * token_logps(inputs.policy),
            self.mean_tokens(inputs),
            advantages,
            {
                "clipped": token_sum((cut < u).to(u.dtype), inputs.policy.mask)
                / inputs.policy.lengths()
            },
        )
