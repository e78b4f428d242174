"""REINFORCE++: token returns, made even over the whole step, under PPO's clip; no critic.

Hu et al. 2025, arXiv:2501.03262, as in OpenRLHF (`reinforce` with `baseline: none`,
`reinforce_baseline` with the group's mean), with no discount. Equation numbers not verified. Mean
and deviation are those of all tokens of the optimizer step; OpenRLHF's are those of a round's
samples, which may make several steps, and its clip of rewards is left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives.base import present
from align.objectives.coupled import Carried, CoupledGroups
from align.objectives.groups.base import group_mean
from align.objectives.groups.tokens import (
    clipped_gain,
    is_last,
    ratio,
    stopped_by_clip,
    token_logratio,
    token_sum,
)
from align.types import GroupInputs, GroupOutput

LEAST_VARIANCE = 1e-8  # in square units of the score, as in OpenRLHF


class ReinforcePP(CoupledGroups, frozen=True):
    r"""L = -sum_t min(u_t A_t, clip(u_t, 1 - clip_low, 1 + clip_high) A_t) / mean tokens.

    A_t = (G_t - mean of the step's G) / deviation of the step's G
    G_t = R - baseline - kl_beta sum_(s >= t) log(pi_previous(y_s) / pi_ref(y_s)),   R = `score`

    With u = pi / pi_previous of a token, and mean and deviation over the step's tokens; the divisor
    is as in `dapo`. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["reinforce_pp"] = "reinforce_pp"
    measures = ("tokens", "mean return", "squares about it")
    gives = ("mean tokens", "mean return", "deviation")

    baseline: Literal["group_mean", "none"] = Field(
        default="group_mean", description="What a score is compared with before the step's mean."
    )
    kl_beta: float = Field(
        default=0.01,
        ge=0,
        description="Return taken off per nat of previous over pi_ref; 0 needs no reference.",
    )
    clip_low: float = Field(default=0.2, gt=0, description="Largest move of u below 1.")
    clip_high: float = Field(default=0.2, gt=0, description="Largest move of u above 1.")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on kl_beta
        """`previous` and `score`; `reference` where kl_beta > 0."""
        return frozenset({"previous", "score"} | ({"reference"} if self.kl_beta > 0 else set()))

    def measure(self, inputs: GroupInputs) -> Tensor:
        """[N, 3]: number of tokens, mean of their returns, squared distances from that, summed."""
        returns, mask = self.returns(inputs), inputs.policy.mask
        lengths = inputs.policy.lengths().to(returns.dtype)
        mean = token_sum(returns, mask) / lengths
        squares = token_sum((returns - mean[:, None]) ** 2, mask)
        return torch.stack([lengths, mean, squares], dim=1)

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """[S, 3]: of the step's tokens, the same for each completion."""
        del carried
        lengths, means, squares = measured.double().unbind(dim=1)
        mean = (lengths * means).sum() / lengths.sum()
        variance = (squares + lengths * (means - mean) ** 2).sum() / lengths.sum()
        deviation = variance.clamp(min=LEAST_VARIANCE).sqrt()
        given = torch.stack([lengths.mean(), mean, deviation]).to(measured.dtype)
        return given.expand(len(measured), 3), {}

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; mean advantage and share of stopped tokens."""
        inputs = self.checked(inputs)
        mask, lengths = inputs.policy.mask, inputs.policy.lengths()
        mean_tokens, mean, deviation = present(inputs.coupling).unbind(dim=1)
        advantage = (self.returns(inputs) - mean[:, None]) / deviation[:, None]
        logratio = token_logratio(inputs.policy, present(inputs.previous))
        u = ratio(logratio)
        gain = clipped_gain(advantage, u, self.clip_low, self.clip_high)
        stopped = stopped_by_clip(advantage, u, self.clip_low, self.clip_high)
        return GroupOutput(
            loss=-token_sum(gain, mask) / mean_tokens,
            reward=token_sum(logratio, mask).detach(),
            metrics={
                "advantage": token_sum(advantage, mask) / lengths,
                "clipped": token_sum(stopped, mask) / lengths,
            },
        )

    def returns(self, inputs: GroupInputs) -> Tensor:
        """[N, T]: G_t of checked inputs; what stands where masked counts for nothing."""
        score, mask = present(inputs.score), inputs.policy.mask
        if self.baseline == "group_mean":
            score = score - group_mean(score, inputs.group)[inputs.group]
        reward = is_last(mask) * score[:, None]
        if self.kl_beta > 0:
            kl = token_logratio(present(inputs.previous), present(inputs.reference))
            reward = reward - self.kl_beta * kl
        return reward.flip(1).cumsum(dim=1).flip(1)
