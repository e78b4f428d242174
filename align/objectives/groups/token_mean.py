"""Losses whose mean is one over all tokens of the optimizer step, not one over completions.

The number of tokens of a step is known from no part of it, so this is a statistic of the whole
step: the same for any forward passes, token budgets and ranks.
"""

from __future__ import annotations

from torch import Tensor

from align.objectives.base import present
from align.objectives.coupled import Carried, CoupledGroups
from align.types import GroupInputs, at_least_float32


class TokenMean(CoupledGroups, frozen=True):
    """A completion's token sum is divided by the mean length of all the step's completions.

    The trainer's mean over completions is then the mean over the step's tokens.
    """

    measures = ("tokens",)
    gives = ("mean tokens",)

    def measure(self, inputs: GroupInputs) -> Tensor:
        """[N, 1]: number of completion tokens."""
        return inputs.policy.lengths().to(at_least_float32(inputs.policy.token).dtype)[:, None]

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """[S, 1]: their mean, the same for each completion."""
        del carried
        return measured.mean(dim=0, keepdim=True).expand(len(measured), 1), {}

    def mean_tokens(self, inputs: GroupInputs) -> Tensor:
        """[N]: what a token sum of checked inputs is divided by."""
        return present(inputs.coupling)[:, 0]
