"""What every objective over groups is; the rules of `align.objectives.base` hold here too.

A group is the completions of one prompt, of any number, one included. The inputs are flat: a row is
a completion, and `group` says which belong together.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from align.objectives.base import Formula, logratio, present
from align.objectives.groups.checks import check_groups
from align.types import GroupInputs, GroupOutput, Logps


class GroupObjective(Formula, frozen=True):
    """A loss over completions in groups. `needs` and `accepts` name fields of `GroupInputs`."""

    @abstractmethod
    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """The unreduced loss of N completions, in float32 or wider.

        Raises:
            RecipeError: a needed role is missing, or what is needed of the whole vocabulary.
            DataError: a needed column is missing, one that is not accepted is there, or a shape or
                value of what the formula reads is not what `GroupInputs` says.
        """

    def checked(self, inputs: GroupInputs) -> GroupInputs:
        """What the formula reads of `inputs`: checked, detached but for the policy; the rest None.

        `group` comes back as numbers 0 .. G-1 in the order of their values.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        return check_groups(
            inputs,
            self.name,
            self.needs,
            self.accepts,
            win_rates=self.scores_are_win_rates,
            vocabulary=self.vocabulary,
        )


def group_logratio(inputs: GroupInputs, frozen: Logps | None) -> Tensor:
    """[N] nats: log pi(y|x) - log pi_frozen(y|x), weighed by `token_weight` where it was read."""
    return logratio(inputs.policy, present(frozen), inputs.token_weight)


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """[N]: sums over the groups of values [N], with `group` [N] numbered 0 .. G-1.

    What stands behind the G sums is 0 and means nothing: to ask how many groups there are would
    make the host wait for the device.
    """
    return torch.zeros_like(values).index_add(0, group, values)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """[N]: means over the groups of values [N], placed as the sums of `group_sum` are."""
    return group_sum(values, group) / group_sum(torch.ones_like(values), group).clamp(min=1)


def same_group(group: Tensor) -> Tensor:
    """[N, N] bool: which completions are of one prompt; each is of its own."""
    return group[:, None] == group[None, :]


def ranked_pairs(score: Tensor, group: Tensor) -> Tensor:
    """[N, N] bool: (i, j) where i and j answer one prompt and i has the higher score.

    Equal scores are no pair: nothing says which of the two is better.
    """
    return same_group(group) & (score[:, None] > score[None, :])
