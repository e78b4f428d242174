"""CoPG over groups: off-policy policy gradient in which the others are each completion's baseline.

Contrastive Policy Gradient, Flet-Berliac et al. 2024, arXiv:2406.19185, in the group form that the
Command A report uses (as reported by others). Its gradient is RLOO's with the KL term in the
reward, for completions from anywhere: no sampling policy is needed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.base import (
    GroupObjective,
    group_logratio,
    group_mean,
    group_sum,
)
from align.types import GroupInputs, GroupOutput


class CoPGGroup(GroupObjective, frozen=True):
    r"""L = 1 / (K - 1) sum_(i>j) (R_beta(y_i) - R_beta(y_j))^2,   R_beta = R - beta rho.

    Per prompt of K completions, with rho as in DPO and R = `score` in its own units; it stands at
    each of them. Nothing is detached, and the gradient in rho_i is -2 beta times R_beta(y_i) less
    the mean R_beta of the others. For K = 2 it is 2 beta `copg` + dR^2, so that its gradient is
    2 beta times that of `copg`. One completion alone has a loss of 0. Reward: beta rho.
    """

    name: Literal["copg_group"] = "copg_group"
    needs = frozenset({"reference", "score"})

    beta: float = Field(
        default=0.06, gt=0, description="Score per nat of log-ratio; stable from 0.03 to 0.1."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions."""
        inputs = self.checked(inputs)
        group, rho = inputs.group, group_logratio(inputs, inputs.reference)
        regularised = present(inputs.score) - self.beta * rho
        count = group_sum(rho.new_ones(rho.shape), group)
        # The squared differences of K numbers sum to K times their squared distances to the mean.
        distance = regularised - group_mean(regularised, group)[group]
        loss = count / (count - 1).clamp(min=1) * group_sum(distance**2, group)
        return GroupOutput(loss=loss[group], reward=self.beta * rho.detach(), metrics={})
