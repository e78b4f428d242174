"""Group-relative policy gradient on a round's completions: GRPO, Dr. GRPO and RLOO by settings.

Of GRPO (Shao et al. 2024, arXiv:2402.03300): advantages from the group's own scores over their
deviation, PPO's clip per token, the mean over a completion's own tokens, KL as k3 in the loss. Of
Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): `scale: none` and a fixed `divisor`. Of RLOO (Ahmadian
et al. 2024, arXiv:2402.14740): `baseline: leave_one_out` with `scale: none`; its ratio is that of
the whole completion and its KL stands in the reward, which is not so here.

Like TRL 1.16, the deviation is that of a sample and 1e-4 is added to it. A group whose scores are
all equal, or of one completion, has advantages of exactly 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_mean, group_sum, ranked_pairs
from align.objectives.groups.tokens import clipped_gain, k3, ratio, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput

LEAST_DEVIATION = 1e-4  # in units of the score


class GroupRelative(GroupObjective, frozen=True):
    r"""L = -sum_t (min(u_t A, clip(u_t, 1 - clip, 1 + clip) A) - kl_beta k3_t) / divisor.

    A = (R - baseline) / (deviation + 1e-4),   u = pi / pi_previous of a token

    With R = `score`; k3 = exp(-x) + x - 1 of a token's log-ratio x to `reference`. Without a
    `divisor` it is the completion's length. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["group_relative"] = "group_relative"

    baseline: Literal["group_mean", "leave_one_out"] = Field(
        default="group_mean", description="Mean score of the group, or of its other completions."
    )
    scale: Literal["sample_deviation", "population_deviation", "none"] = Field(
        default="sample_deviation", description="What advantages are divided by; GRPO the first."
    )
    divisor: float | None = Field(
        default=None,
        gt=0,
        description="Of token sums: Dr. GRPO a number; none is the length (GRPO).",
    )
    clip: float = Field(default=0.2, gt=0, description="Largest move of u from 1.")
    kl_beta: float = Field(
        default=0.0, ge=0, description="Loss per nat of k3 from pi_ref; 0 needs no reference."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on kl_beta
        """`previous` and `score`; `reference` where kl_beta > 0."""
        return frozenset({"previous", "score"} | ({"reference"} if self.kl_beta > 0 else set()))

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; advantage, share of stopped tokens, what compares."""
        inputs = self.checked(inputs)
        mask = inputs.policy.mask
        advantage, compares = self._advantages(present(inputs.score), inputs.group)
        logratio = token_logratio(inputs.policy, present(inputs.previous))
        u = ratio(logratio)
        gain = clipped_gain(advantage[:, None], u, self.clip)
        beyond = u.detach() - u.detach().clamp(1 - self.clip, 1 + self.clip)
        stopped = (advantage[:, None] * beyond > 0).to(gain.dtype)
        lengths = inputs.policy.lengths().to(gain.dtype)
        metrics = {
            "advantage": advantage,
            "clipped": token_sum(stopped, mask) / lengths,
            "compares": compares.to(gain.dtype),
        }
        if self.kl_beta > 0:
            kl = k3(inputs.policy, present(inputs.reference))
            gain = gain - self.kl_beta * kl
            metrics["kl"] = token_sum(kl, mask).detach() / lengths
        divisor = lengths if self.divisor is None else self.divisor
        return GroupOutput(
            loss=-token_sum(gain, mask) / divisor,
            reward=token_sum(logratio, mask).detach(),
            metrics=metrics,
        )

    def _advantages(self, score: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """A of the formula, and where the group has scores that differ; [N] each."""
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
        return torch.where(compares, advantage, 0.0), compares
