# pyright: basic
"""Metrics as sums over counts, so that they do not depend on batch size or number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.forest import Pack
from align.forest.model import EdgeOutput

# Per row and metric: what is added up, and how much it counts for.
RowValues = Mapping[str, tuple[Tensor, Tensor]]


def statistics_of(pack: Pack, output: EdgeOutput) -> dict[str, Tensor]:
    """Sums over each row's scored tokens, [R], in the pack's order.

    Returns:
        `entropy` [nats], `mean_logits`, `is_top1`; empty where the pass did not compute them.
    """
    found: dict[str, Tensor] = {}
    for name in ("entropy", "mean_logits", "is_top1"):
        edge = getattr(output, name)
        if edge is not None:
            edge = edge.to(pack.index.device)
            found[name] = pack.rows(0, len(pack.lengths), edge).token.sum(dim=1)
    return found


# Batches that stay on the device unread: a read makes the host wait for it.
UNREAD = 1024


class SumsOverCounts:
    """Running sums and counts by metric name, kept in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._unread: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, rows: RowValues) -> None:
        """Adds the rows of one batch: numerators and denominators, [B] each."""
        stacked = torch.stack(
            [torch.stack([n.double().sum(), d.double().sum()]) for n, d in rows.values()]
        )
        self._unread.append((tuple(rows), stacked))
        if len(self._unread) >= UNREAD:
            self._read()

    def _read(self) -> None:
        """Takes up the batches that are still on the device, in their order."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        numbers = iter(torch.cat([stacked for _, stacked in unread]).tolist())
        for names, _ in unread:
            for name in names:
                numerator, count = next(numbers)
                before = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (before[0] + numerator, before[1] + count)

    def means(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Mean of each metric, over all ranks when an accelerator is given.

        A metric without a count is absent.
        """
        self._read()
        if not self._sums:
            return {}
        sums: Any = torch.tensor(list(self._sums.values()), dtype=torch.float64)
        if accelerator is not None and accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), "sum")
        return {
            name: total / count
            for name, (total, count) in zip(self._sums, sums.tolist(), strict=True)
            if count > 0
        }

    def clear(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._unread.clear()

    def to_json(self) -> dict[str, list[float]]:
        """For a checkpoint: JSON keeps a float64 exactly."""
        self._read()
        return {name: list(pair) for name, pair in self._sums.items()}

    def restore(self, stored: Mapping[str, list[float]]) -> None:
        """The state that `to_json` gave."""
        self.clear()
        self._sums = {name: (pair[0], pair[1]) for name, pair in stored.items()}


class SeenOnce:
    """Drops rows that a sampler repeated to fill its last batch, and passes run for other ranks."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._seen: set[int] = set()

    def gather(self, row_index: Tensor, rows: RowValues) -> RowValues:
        """All ranks' rows of this batch, each row of the data set once in the whole evaluation."""
        names = list(rows)
        table: Any = torch.stack(
            [torch.stack([n.double(), d.double()]) for n, d in rows.values()], dim=-1
        )
        index: Any = row_index
        if self._accelerator.num_processes > 1:
            # [2, B, M] -> rows first, because gather joins along dimension 0; B differs by rank.
            table = self._accelerator.pad_across_processes(table.transpose(0, 1).contiguous())
            gathered: Any = self._accelerator.gather(table)
            table = gathered.transpose(0, 1)
            index = self._accelerator.pad_across_processes(row_index, pad_index=-1)
            index = self._accelerator.gather(index)
        keep: list[int] = []
        for position, row in enumerate(index.tolist()):
            if row >= 0 and row not in self._seen:
                self._seen.add(row)
                keep.append(position)
        table = table[:, keep]
        return {name: (table[0, :, m], table[1, :, m]) for m, name in enumerate(names)}
