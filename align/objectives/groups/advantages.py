"""What losses have in common that compare a prompt's answers by their scores: A, k3, the report.

Like TRL 1.16, the deviation is that of a sample and 1e-4 is added to it. A group whose scores are
all equal, or of one completion, has advantages of exactly 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_mean, group_sum, ranked_pairs
from align.objectives.groups.tokens import k3, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput

LEAST_DEVIATION = 1e-4  # in units of the score


class Advantages(NamedTuple):
    """Of N completions: what each is better by, and whether its group has scores that differ."""

    value: Tensor
    compares: Tensor


class GroupAdvantage(GroupObjective, frozen=True):
    """A loss that weighs a completion by A = (R - baseline) / (deviation + 1e-4), R = `score`."""

    baseline: Literal["group_mean", "leave_one_out"] = Field(
        default="group_mean", description="Mean score of the group, or of its other completions."
    )
    scale: Literal["sample_deviation", "population_deviation", "none"] = Field(
        default="sample_deviation", description="What advantages are divided by; GRPO the first."
    )
    kl_beta: float = Field(
        default=0.0, ge=0, description="Loss per nat of k3 from pi_ref; 0 needs no reference."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on kl_beta
        """`previous` and `score`; `reference` where kl_beta > 0."""
        return frozenset({"previous", "score"} | ({"reference"} if self.kl_beta > 0 else set()))

    def advantages(self, inputs: GroupInputs) -> Advantages:
        """A of checked inputs."""
        score, group = present(inputs.score), inputs.group
        count = group_sum(torch.ones_like(score), group)
        above_mean = score - group_mean(score, group)[group]
        advantage = above_mean
        if self.baseline == "leave_one_out":
            advantage = above_mean * (count / (count - 1).clamp(min=1))[group]
        if self.scale != "none":
            freedom = count - 1 if self.scale == "sample_deviation" else count
            deviation = (group_sum(above_mean**2, group) / freedom.clamp(min=1)).sqrt()
            advantage = advantage / (deviation + LEAST_DEVIATION)[group]
        pairs = ranked_pairs(score, group)
        compares = pairs.any(dim=1) | pairs.any(dim=0)
        # A mean of equal scores can miss them by rounding, and so divided that would count.
        return Advantages(torch.where(compares, advantage, 0.0), compares)

    def output(
        self,
        inputs: GroupInputs,
        gain: Tensor,
        divisor: Tensor | float,
        advantages: Advantages,
        metrics: dict[str, Tensor],
    ) -> GroupOutput:
        """L = -sum_t (gain_t - kl_beta k3_t) / divisor, with the metrics that all of these have.

        Args:
            inputs: N checked completions.
            gain: [N, T], what is maximised at each token.
            divisor: of the sum over tokens, [N] or one number.
            advantages: of the completions.
            metrics: further ones, [N] each.
        """
        mask = inputs.policy.mask
        compared = advantages.compares.to(gain.dtype)
        metrics = {"advantage": advantages.value, "compares": compared, **metrics}
        if self.kl_beta > 0:
            kl = k3(inputs.policy, present(inputs.reference))
            gain = gain - self.kl_beta * kl
            metrics["kl"] = token_sum(kl, mask).detach() / inputs.policy.lengths()
        logratio = token_logratio(inputs.policy, present(inputs.previous))
        return GroupOutput(
            loss=-token_sum(gain, mask) / divisor,
            reward=token_sum(logratio, mask).detach(),
            metrics=metrics,
        )
