"""GEPO: the mean of a prompt's equivalent winners over that of its losers, winners kept together.

Group Equivalent Preference Optimization, 2025, arXiv:2505.12723, from its prose (the displayed
equations are not verified, and no public code is known to us). There it stands beside an on-policy
loss, with a weight of 0.01.

Where the text is silent: the variance is that of the log-ratio, without beta (with it is
`variance_weight` times beta^2), and that of a population unless `variance` says otherwise; one
winner has none. A group of one kind alone compares nothing: its loss is 0, the variance included.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_logratio, group_sum
from align.types import GroupInputs, GroupOutput


class GEPO(GroupObjective, frozen=True):
    r"""L = -log sigmoid(beta (mean_i rho(w_i) - mean_j rho(l_j))) + lambda Var_i[rho(w_i)].

    Per prompt, with rho as in DPO, over its winners w (`label` True) and losers l; it stands at
    each of the prompt's completions. One of each is DPO. A variance of sums grows with the square
    of the length. Reward: beta rho.
    """

    name: Literal["gepo"] = "gepo"
    needs = frozenset({"reference", "label"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    variance_weight: float = Field(
        default=1.0, ge=0, description="Loss per square nat of variance among the winners: lambda."
    )
    variance: Literal["population", "sample"] = Field(
        default="population", description="Squares over n winners, or over n - 1."
    )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; of their prompts the variance, and what compares."""
        inputs = self.checked(inputs)
        group, label = inputs.group, present(inputs.label)
        rho = group_logratio(inputs, inputs.reference)
        wins, losses = label.to(rho.dtype), (~label).to(rho.dtype)
        n, m = group_sum(wins, group), group_sum(losses, group)
        compares = ((n > 0) & (m > 0))[group]
        of_winners = group_sum(rho * wins, group) / n.clamp(min=1)
        gap = of_winners - group_sum(rho * losses, group) / m.clamp(min=1)
        divisor = n if self.variance == "population" else n - 1
        squares = group_sum(wins * (rho - of_winners[group]) ** 2, group)
        variance = squares / divisor.clamp(min=1)
        loss = softplus(-self.beta * gap) + self.variance_weight * variance
        return GroupOutput(
            loss=torch.where(compares, loss[group], 0.0 * rho),
            reward=self.beta * rho.detach(),
            metrics={
                "variance": variance.detach()[group],
                "compares": compares.to(rho.dtype),
            },
        )
