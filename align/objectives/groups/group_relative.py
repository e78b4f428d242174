"""Group-relative policy gradient on a round's completions: GRPO, Dr. GRPO and RLOO by settings.

Of GRPO (Shao et al. 2024, arXiv:2402.03300): advantages from the group's own scores over their
deviation, PPO's clip per token, the mean over a completion's own tokens, KL as k3 in the loss. Of
Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): `scale: none` and a fixed `divisor`. Of RLOO (Ahmadian
et al. 2024, arXiv:2402.14740): `baseline: leave_one_out` with `scale: none`; its ratio is that of
the whole completion and its KL stands in the reward, which is not so here.

The mean over all tokens of a step (TRL's `dapo` and `bnpo`) is `dapo`, the ratio of whole
completions `gspo` and `rloo`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.tokens import (
    clipped_gain,
    ratio,
    stopped_by_clip,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput


class GroupRelative(GroupAdvantage, frozen=True):
    r"""L = -sum_t (min(u_t A, clip(u_t, 1 - clip, 1 + clip_high) A) - kl_beta k3_t) / divisor.

    A = (R - baseline) / (deviation + 1e-4),   u = pi / pi_previous of a token

    With R = `score`; k3 = exp(-x) + x - 1 of a token's log-ratio x to `reference`. Without a
    `divisor` it is the completion's length, without a `clip_high` it is `clip`. Reward:
    log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["group_relative"] = "group_relative"

    divisor: float | None = Field(
        default=None,
        gt=0,
        description="Of token sums: Dr. GRPO a number; none is the length (GRPO).",
    )
    clip: float = Field(default=0.2, gt=0, description="Largest move of u from 1.")
    clip_high: float | None = Field(
        default=None, gt=0, description="Largest move of u above 1; none is that of `clip`."
    )
    largest_ratio: float | None = Field(
        default=None, gt=1, description="Largest u at all where A < 0: TRL's delta; none is any."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, share of stopped tokens, what compares."""
        inputs = self.checked(inputs)
        advantages, lengths = self.advantages(inputs), inputs.policy.lengths()
        value = advantages.value[:, None]
        u = ratio(token_logratio(inputs.policy, present(inputs.previous)))
        low, high = self.clip, self.clip if self.clip_high is None else self.clip_high
        stopped = stopped_by_clip(value, u, low, high)
        return self.output(
            inputs,
            clipped_gain(value, u, low, high, self.largest_ratio),
            lengths if self.divisor is None else self.divisor,
            advantages,
            {"clipped": token_sum(stopped, inputs.policy.mask) / lengths},
        )
