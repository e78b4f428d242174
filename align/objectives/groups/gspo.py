"""GSPO: one ratio for the whole completion, the geometric mean of its tokens', and one clip.

Group Sequence Policy Optimization, Zheng et al. 2025, arXiv:2507.18071 (equation numbers not
verified), as in TRL 1.16 (`importance_sampling_level: sequence` with the loss `grpo`) and OpenRLHF
(`gspo`). The clip is the paper's, far narrower than GRPO's because a mean over tokens moves less.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.advantages import GroupAdvantage
from align.objectives.groups.tokens import (
    clipped_gain,
    mean_logratio,
    ratio,
    stopped_by_clip,
    token_logratio,
)
from align.types import GroupInputs, GroupOutput


class GSPO(GroupAdvantage, frozen=True):
    r"""L = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) + kl_beta mean_t k3_t.

    s = (pi(y|x) / pi_previous(y|x))^(1 / length(y))

    A and k3 as in `group_relative`, which it is for completions of one token. Reward:
    log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["gspo"] = "gspo"

    clip_low: float = Field(default=3e-4, gt=0, description="Largest move of s below 1.")
    clip_high: float = Field(default=4e-4, gt=0, description="Largest move of s above 1.")
    largest_ratio: float | None = Field(
        default=None, gt=1, description="Largest s at all where A < 0: TRL's delta; none is any."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, which are stopped, what compares."""
        inputs = self.checked(inputs)
        advantages, policy = self.advantages(inputs), inputs.policy
        s = ratio(mean_logratio(token_logratio(policy, present(inputs.previous)), policy))
        gain = clipped_gain(advantages.value, s, self.clip_low, self.clip_high, self.largest_ratio)
        stopped = stopped_by_clip(advantages.value, s, self.clip_low, self.clip_high)
        return self.output(
            inputs,
            gain[:, None].expand_as(policy.mask),
            policy.lengths(),
            advantages,
            {"clipped": stopped},
        )
