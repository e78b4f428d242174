"""Objectives whose loss of one row depends on all rows of the optimizer step.

A row is a pair, or a completion of a group. The step's rows come in several forward passes
(gradient accumulation, `token_budget`) and on several ranks, and none of these may move a result.
So such an objective is two functions: what has to be known of each row, and what each row is given
once that is known of all. The trainer calls the first without gradient over the whole step, and the
second once, on the same rows in the same order on every rank; the formula itself stays a loss per
row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from align.errors import DataError
from align.objectives.base import Objective
from align.objectives.groups.base import GroupObjective
from align.types import GroupInputs, PairInputs, at_least_float32

# What runs on from step to step: numbers by name, empty before the first step.
Carried = Mapping[str, float]


class WholeStep(ABC):
    """What a formula declares that sees statistics of its whole optimizer step.

    Attributes:
        measures: names of the K numbers that the step has to know of each row (pair, completion).
        gives: names of the G numbers that each row is given in return.
    """

    measures: ClassVar[tuple[str, ...]]
    gives: ClassVar[tuple[str, ...]]

    @property
    def couples(self) -> bool:
        """Whether the settings at hand look beyond a row at all."""
        return True

    @abstractmethod
    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """What each row of a training step is given, and what runs on to the next step.

        Args:
            measured: [S, K], of all rows of the step on all ranks, in the data set's order.
            carried: what the step before left.

        Returns:
            `gives` of each row [S, G], and what the next step finds in `carried`.
        """

    def couple_held_out(self, measured: Tensor, carried: Carried) -> Tensor:
        """[S, G]: what each row of an evaluation is given; nothing runs on.

        Args:
            measured: [S, K], of all rows of the evaluation, as if they were one step.
            carried: what the last training step left.
        """
        return self.couple(measured, carried)[0]

    @torch.no_grad()
    def alone(self, measured: Tensor) -> Tensor:
        """[B, G]: what rows are given that are a whole first step."""
        return self.couple(measured, {})[0]

    def fitting(self, coupling: Tensor, token: Tensor) -> Tensor:
        """`coupling` [B, G], detached and in the dtype of the sums of `token` [B, T].

        Raises:
            DataError: it is of other rows, or another formula's.
        """
        if coupling.shape != (len(token), len(self.gives)):
            name = getattr(self, "name", type(self).__name__)
            raise DataError(
                f"`coupling` has shape {list(coupling.shape)}, but objective `{name}` gives "
                f"{', '.join(self.gives)} to each of {len(token)} rows: take it from `couple`."
            )
        return coupling.detach().to(at_least_float32(token).dtype)


class Coupled(WholeStep, Objective, frozen=True):
    """A loss over preference pairs that sees statistics of its whole optimizer step.

    `__call__` opens with `inputs = self.checked(inputs)` as everywhere, and finds in
    `inputs.coupling` what `couple` gave its pairs. Called on its own, without `coupling`, the pairs
    at hand are a whole first step.
    """

    @abstractmethod
    def measure(self, inputs: PairInputs) -> Tensor:
        """[B, K]: `measures` of B checked pairs."""

    @torch.no_grad()
    def measured(self, inputs: PairInputs) -> Tensor:
        """[B, K]: `measures` of B pairs, detached.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        return self.measure(super().checked(inputs))

    def checked(self, inputs: PairInputs) -> PairInputs:
        """As in `Objective`, with `coupling` [B, G] in the dtype of the policy's sums.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        coupling, read = inputs.coupling, super().checked(inputs)
        if not self.couples:
            return read
        if coupling is None:
            with torch.no_grad():
                coupling = self.alone(self.measure(read))
        return replace(read, coupling=self.fitting(coupling, read.policy.chosen.token))


class CoupledGroups(WholeStep, GroupObjective, frozen=True):
    """The same over groups: a row is a completion."""

    @abstractmethod
    def measure(self, inputs: GroupInputs) -> Tensor:
        """[N, K]: `measures` of N checked completions."""

    @torch.no_grad()
    def measured(self, inputs: GroupInputs) -> Tensor:
        """[N, K]: `measures` of N completions, detached.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        return self.measure(super().checked(inputs))

    def checked(self, inputs: GroupInputs) -> GroupInputs:
        """As in `GroupObjective`, with `coupling` [N, G] in the dtype of the policy's sums.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        coupling, read = inputs.coupling, super().checked(inputs)
        if not self.couples:
            return read
        if coupling is None:
            with torch.no_grad():
                coupling = self.alone(self.measure(read))
        return replace(read, coupling=self.fitting(coupling, read.policy.token))


def partners(first: Tensor, second: Tensor) -> Tensor:
    """[S]: for each of `first`, the one of `second` that has the same rank.

    Equal values keep their order, so that the same rows always have the same partners.
    """
    found = torch.empty_like(second)
    found[first.argsort(stable=True)] = second.sort(stable=True).values
    return found
