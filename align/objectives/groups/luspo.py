"""LUSPO: GSPO times the completion's length, so that long completions weigh by their tokens.

Length-Unbiased Sequence Policy Optimization, 2026, arXiv:2602.05261, as in TRL 1.16 with
`importance_sampling_level: sequence` (equation numbers not verified; the clip is that of the
paper's section 5.1, as TRL quotes it). KL is summed over tokens, as there.
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


class LUSPO(GroupAdvantage, frozen=True):
    r"""L = -length(y) min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) + kl_beta sum_t k3_t.

    A, s and k3 as in `gspo`. A token's gradient does not hang on how many there are, as long as s
    does not move. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["luspo"] = "luspo"

    clip_low: float = Field(default=2e-3, gt=0, description="Largest move of s below 1.")
    clip_high: float = Field(default=2.5e-3, gt=0, description="Largest move of s above 1.")
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
            inputs, gain[:, None].expand_as(policy.mask), 1.0, advantages, {"clipped": stopped}
        )
