"""DAPO of ByteDance: GRPO as a mean over the step's tokens, with more room upwards than downwards.

Decoupled clip and dynamic sampling, Yu et al. 2025, arXiv:2503.14476 (equation numbers not
verified), as in TRL 1.16, whose default it is. TRL's `bnpo` is the same mean over one forward pass
of one device: here passes and ranks decide nothing, so that `bnpo` is this loss too. Another
paper's DAPO is `direct_advantage`.

The paper's other parts are no loss: new questions in place of those whose answers all score alike
(dynamic sampling), and what is taken off the score of answers that are too long.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.token_mean import TokenMean
from align.objectives.groups.tokens import (
    clipped_gain,
    ratio,
    stopped_by_clip,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput


class DAPO(TokenMean, GroupAdvantage, frozen=True):
    r"""L = -sum_t (min(u_t A, clip(u_t, 1 - clip_low, 1 + clip_high) A) - kl_beta k3_t) / tokens.

    A, u and k3 as in `group_relative`; `tokens` is the mean length of the step's completions, so
    that the mean over completions is one over tokens. Completions of one length are
    `group_relative`. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["dapo"] = "dapo"

    clip_low: float = Field(default=0.2, gt=0, description="Largest move of u below 1.")
    clip_high: float = Field(default=0.28, gt=0, description="Largest move of u above 1.")
    largest_ratio: float | None = Field(
        default=None, gt=1, description="Largest u at all where A < 0: TRL's delta; none is any."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, share of stopped tokens, what compares."""
        inputs = self.checked(inputs)
        advantages = self.advantages(inputs)
        value = advantages.value[:, None]
        u = ratio(token_logratio(inputs.policy, present(inputs.previous)))
        stopped = stopped_by_clip(value, u, self.clip_low, self.clip_high)
        return self.output(
            inputs,
            clipped_gain(value, u, self.clip_low, self.clip_high, self.largest_ratio),
            self.mean_tokens(inputs),
            advantages,
            {"clipped": token_sum(stopped, inputs.policy.mask) / inputs.policy.lengths()},
        )
