# pyright: basic
"""Metrics as sums over counts, so that they do not depend on batch size or number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_utils import EvalPrediction

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


def numbered_within(sizes: Tensor, losses: int) -> Tensor:
    """[N]: the number of each of N losses within its row, from 0, for rows of these sizes [b]."""
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes, output_size=losses)
    return torch.arange(losses, device=sizes.device) - begins


def once_in_order(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """All ranks' rows [n, 3 + K], each of them once, by row index and number.

    Args:
        rows: row index, number in its row, count, and K values of each loss on this rank.
        accelerator: that knows the others.
    """
    if accelerator.num_processes > 1:
        # What it pads with has the count 0.
        padded: Any = accelerator.pad_across_processes(rows.contiguous())
        gathered: Any = accelerator.gather(padded)
        rows = gathered
    rows = rows[rows[:, 2] > 0]
    for column in (1, 0):
        rows = rows[rows[:, column].argsort(stable=True)]
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(dim=1)
    return rows[first]


@dataclass(frozen=True, eq=False)
class Judged:
    """What `compute_metrics` is given of N losses.

    Attributes:
        predictions: [N] or [N, 2] rewards.
        truth: [N], what they are to be compared with; None where the data do not say.
    """

    predictions: Tensor
    truth: Tensor | None


class HeldOut:
    """Gathers an evaluation's rewards for `compute_metrics`."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._like: Judged | None = None

    def add(self, judged: Judged, row_index: Tensor, sizes: Tensor, counts: Tensor) -> None:
        """The losses of rows with these indices [b], sizes [b] and counts [N]."""
        self._like = judged
        columns = [row_index.repeat_interleave(sizes), numbered_within(sizes, len(counts)), counts]
        columns += [judged.predictions, *(() if judged.truth is None else (judged.truth,))]
        self._rows.append(
            torch.cat([one.detach().double().reshape(len(counts), -1) for one in columns], dim=1)
        )

    def prediction(self, accelerator: Accelerator) -> EvalPrediction:
        """Of all ranks' rows, each once, in the data set's order."""
        assert self._like is not None
        of_all = once_in_order(torch.cat(self._rows), accelerator)[:, 3:].cpu()
        truth: Any = None
        if self._like.truth is not None:
            truth = of_all[:, -1].to(self._like.truth.dtype).numpy()
            of_all = of_all[:, :-1]
        rewards = of_all if self._like.predictions.dim() > 1 else of_all[:, 0]
        return EvalPrediction(predictions=rewards.numpy(), label_ids=truth)
