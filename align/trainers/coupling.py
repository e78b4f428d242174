# pyright: basic
"""What an objective is told of its whole step, whatever the forward passes and the ranks.

A step of one forward pass on one process is measured by that pass itself. Any other step is
measured beforehand, by one more pass over its rows without gradient and without dropout.
An evaluation is one step over all of its rows, so it is passed through twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from align.objectives.coupled import Carried, Coupled, CoupledGroups
from align.objectives.refusals import Refusals, collecting
from align.trainers.bad_numbers import BadNumbers
from align.trainers.checkpoints import Checkpointing
from align.trainers.metrics import numbered_within, once_in_order

AnyCoupled = Coupled | CoupledGroups


@dataclass(frozen=True, eq=False)
class Shares:
    """What every loss of a step was given.

    Attributes:
        row_index: [S] int64, ascending; a row of several losses stands there as often.
        given: [S, G] float64, of these losses, a row's in its own order.
    """

    row_index: Tensor
    given: Tensor

    def of(self, row_index: Tensor, sizes: Tensor, losses: int) -> Tensor:
        """[N, G], of these N losses: those of the rows with these indices [b] and sizes [b].

        A row that is not of this step counts for nothing: accelerate repeated it to fill a batch of
        another rank. It is given what some other row was.
        """
        first = torch.searchsorted(self.row_index, row_index)
        place = first.repeat_interleave(sizes, output_size=losses) + numbered_within(sizes, losses)
        return self.given[place.clamp(max=len(self.row_index) - 1)]


class Coupling(BadNumbers, Checkpointing):
    """The part of the trainer that looks at whole steps; idle unless the objective does."""

    _shares: Shares | None = None
    _carried: Carried = MappingProxyType({})

    def _measured_inputs(self, model: Any, part: Mapping[str, Any]) -> Any:
        """What a coupled objective measures in one of `_measured_parts`, by a forward pass."""
        raise NotImplementedError

    def _measured_parts(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The passes over a batch in which its rows are measured."""
        return batch["parts"]

    @property
    def _pass_measures_itself(self) -> bool:
        """Whether a step of one pass needs no other one to be measured."""
        return True

    def _as_many_as_the_others(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parts without weight on top, where every rank must run the same number of passes."""
        raise NotImplementedError

    def _couple_step(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """To be called with the batches of each optimizer step, before its first forward pass."""
        self._shares = None
        coupled = _coupled(self.objective)
        parts: list[dict[str, Any]] = [
            part | ({"counts": batch["counts"][part["place"]]} if "counts" in batch else {})
            for batch in batches
            for part in self._measured_parts(batch)
        ]
        if coupled is None or not parts:
            return
        several = len(parts) > 1 or self.accelerator.num_processes > 1
        if several or not self._pass_measures_itself:
            rows = self._measured(coupled, self._as_many_as_the_others(parts))
            index, measured = self._of_all_ranks(rows)
            given, self._carried = coupled.couple(measured, self._carried)
            self._shares = Shares(index, given)

    def _with_coupling(self, read: Any, part: Mapping[str, Any]) -> Any:
        """What a pass read, with what its rows were given of the step."""
        coupled = _coupled(self.objective)
        if coupled is None:
            return read
        if self._shares is None:  # this pass is the whole step
            rows = self._rows(coupled, read, part)
            self._stop_on_bad_measures(rows)
            index, measured = self._of_all_ranks(rows)
            given, self._carried = coupled.couple(measured, self._carried)
            self._shares = Shares(index, given)
        losses = len(self.kind.sides(read.policy)[0].mask)
        return replace(read, coupling=self._shares.of(part["row_index"], part["sizes"], losses))

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; a coupled objective is told of all rows first."""
        coupled = _coupled(self.objective)
        if coupled is None:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        parts = (
            part
            for batch in dataloader
            for part in self._as_many_as_the_others(self._measured_parts(batch))
        )
        index, measured = self._of_all_ranks(self._measured(coupled, parts))
        self._shares = Shares(index, coupled.couple_held_out(measured, self._carried))
        return super().evaluation_loop(dataloader, *args, **kwargs)

    @torch.no_grad()
    def _measured(self, coupled: AnyCoupled, parts: Iterable[Mapping[str, Any]]) -> Tensor:
        """[n, 3 + K] float64: row index, number in its row, count and measures of each loss here.

        Without dropout, so that it draws nothing from the generators that the step draws from.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        # The bare model of a replicated one: ranks may run different numbers of passes.
        model: Any = self.model_wrapped if sharded else self.model
        was_training = model.training
        model.eval()
        try:
            found: list[Tensor] = []
            refusals = Refusals()
            with collecting(refusals):
                for part in parts:
                    prepared: Any = self._prepare_inputs(dict(part))
                    read = self._measured_inputs(model, prepared)
                    found.append(self._rows(coupled, read, prepared))
        finally:
            model.train(was_training)
        refusals.tell()
        rows = torch.cat(found)
        self._stop_on_bad_measures(rows)
        return rows

    def _stop_on_bad_measures(self, rows: Tensor) -> None:
        # A number that is not finite would spoil the statistic, and with it every other row.
        self._stop_on_bad_loss(rows[:, 3:].sum(dim=1), rows[:, 0].long())

    def _rows(self, coupled: AnyCoupled, read: Any, part: Mapping[str, Any]) -> Tensor:
        measured = coupled.measured(read).double()
        sizes: Tensor = part["sizes"]
        losses = len(measured)
        index, counts = (
            of_rows.repeat_interleave(sizes, output_size=losses)
            for of_rows in (part["row_index"], part.get("counts", torch.ones_like(sizes)))
        )
        places = [index, numbered_within(sizes, losses), counts]
        return torch.cat([place.to(measured)[:, None] for place in places] + [measured], dim=1)

    def _of_all_ranks(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row index [S], ascending, and measures [S, K] of all ranks' losses, each of them once."""
        rows = once_in_order(rows, self.accelerator)
        return rows[:, 0].long(), rows[:, 3:]

    def _kept(self) -> dict[str, Any]:
        return super()._kept() | {"carried": dict(self._carried)}

    def _find_again(self, kept: Mapping[str, Any]) -> None:
        super()._find_again(kept)
        # Absent in checkpoints of before there were coupled objectives.
        self._carried = dict(kept.get("carried", {}))


def _coupled(objective: Any) -> AnyCoupled | None:
    known = isinstance(objective, (Coupled, CoupledGroups))
    return objective if known and objective.couples else None
