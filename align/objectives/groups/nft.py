"""NFT: likelihood of right answers, and of wrong ones under the policy that only writes these.

Negative-aware Fine-Tuning, Chen et al. 2025, arXiv:2505.18116, eq. 10 (as a reader of version 3
counts them), with the constants of the authors' code. A group is a question's answers, all drawn
from `previous`; its share of right ones is the success rate r.

Differs from the code: the trainer's mean over completions stands where the code has a sum; groups
that are all right or all wrong are not left out of the data but have a loss of 0, and count in the
mean; the log-ratio of a right token is not cut at 10 (its gradient is the weight, whatever it is).
Differs from the paper as quoted: the weight that matches GRPO is the square root of (1 - r) / r.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.errors import DataError
from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_mean
from align.objectives.groups.tokens import token_logratio, token_sum
from align.objectives.refusals import refuse
from align.types import GroupInputs, GroupOutput

LEAST_RATE = 0.02  # of success and of failure
LARGEST_WRONG_LOG_RATIO = 10.0  # nats of a wrong token; beyond it there is no gradient


class NFT(GroupObjective, frozen=True):
    r"""L = -w(r) / divisor sum_t (log u_t if right, else negative_weight log floored(v_t)).

    v_t = (1 - r u_t) / (1 - r),   floored(v) = v + sg[max(v, floor) - v]

    With u_t the ratio of pi to `previous` at a token, and r kept within [0.02, 0.98]. The floor
    changes v's value and keeps its slope. On-policy (u = 1) a token's gradient is -w if right and
    w r / (1 - r) if wrong. Reward: log pi(y|x) - log pi_previous(y|x).
    """

    name: Literal["nft"] = "nft"

    verdict: Literal["score", "label"] = Field(
        default="score", description="Which column says what is right: score of 1 or 0, or label."
    )
    weight: Literal["dr_grpo", "grpo", "one"] = Field(
        default="dr_grpo",
        description="Of a question: 1 - r, or sqrt((1 - r) / r), or 1; on-policy the first two are "
        "the losses that they name.",
    )
    negative_weight: float = Field(
        default=1.0, ge=0, description="Weight of wrong answers; 0 fine-tunes on right ones alone."
    )
    floor: float = Field(
        default=1.0, gt=0, description="Least value of v in the logarithm; near 0 training breaks."
    )
    divisor: float = Field(
        default=1000.0, gt=0, description="What a sum over tokens is divided by; no length."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on verdict
        """`previous`, and the column that says what is right."""
        return frozenset({"previous", self.verdict})

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; success rate and use of their questions, floored share.

        Raises:
            DataError: a score is neither 0 nor 1, and as `checked` says.
        """
        inputs = self.checked(inputs)
        mask, logratio = inputs.policy.mask, token_logratio(inputs.policy, present(inputs.previous))
        right = self._right(inputs)
        success = group_mean(right.to(logratio.dtype), inputs.group)[inputs.group]
        mixed = (success > 0) & (success < 1)
        rate = success.clamp(LEAST_RATE, 1 - LEAST_RATE)
        u = logratio.clamp(max=LARGEST_WRONG_LOG_RATIO).exp()
        v = (1 - rate[:, None] * u) / (1 - rate[:, None])
        floored = v + (v.clamp(min=self.floor) - v).detach()
        gain = torch.where(right[:, None], logratio, self.negative_weight * floored.log())
        loss = -self._weight(rate) / self.divisor * token_sum(gain, mask)
        below = (v.detach() < self.floor) & ~right[:, None] & mask
        return GroupOutput(
            loss=torch.where(mixed, loss, 0.0 * loss),
            reward=token_sum(logratio, mask).detach(),
            metrics={
                "success_rate": success,
                "compares": mixed.to(logratio.dtype),
                "floored": below.sum(dim=1).to(logratio.dtype) / mask.sum(dim=1),
            },
        )

    def _right(self, inputs: GroupInputs) -> Tensor:
        if self.verdict == "label":
            return present(inputs.label)
        score = present(inputs.score)
        refuse(
            (score != 0) & (score != 1),
            lambda row: DataError(
                f"Completion {row} of this batch has the score {float(score[row]):g}, but `nft` "
                "reads 1 as right and 0 as wrong: give it verdicts, or verdict: label."
            ),
        )
        return score == 1

    def _weight(self, rate: Tensor) -> Tensor:
        if self.weight == "dr_grpo":
            return 1 - rate
        return ((1 - rate) / rate).sqrt() if self.weight == "grpo" else torch.ones_like(rate)
