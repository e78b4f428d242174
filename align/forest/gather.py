"""Keys read by several chains: a gather whose gradient needs no sorting.

Autograd's gradient of `values[places]` sorts the places anew in each layer and for keys and values
alike, to add up what the same value received. Here the places of each value are looked up once,
when rows are laid out, and the gradient is a gather and sums of neighbours: the same numbers, in
the same order each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Values with more readers than this share a group with those of up to twice as many, so that a wide
# tree does not become one group, and one call, for each number of readers.
OWN_GROUP = 4


@dataclass(frozen=True, eq=False)
class Readers:
    """For each of T values, the slots of a gather that read it.

    Values are grouped by how many slots read them: a group of n values with up to m readers is n x
    m entries of `slots`, one value after the other.

    Attributes:
        slots: [S] int64 slots, group after group.
        real: [S] False where an entry only fills up its value's row.
        place: [T] int64, where each value stands among the groups.
        groups: (n, m, whether any entry only fills up) of each.
    """

    slots: Tensor
    real: Tensor
    place: Tensor
    groups: tuple[tuple[int, int, bool], ...]

    @classmethod
    def of(cls, places: np.ndarray, values: int) -> Readers:
        """Of a gather.

        Args:
            places: [K] the value that each slot reads; each value is read at least once.
            values: their number, T.
        """
        order = np.argsort(places, kind="stable")
        counts = np.bincount(places, minlength=values)
        first = np.cumsum(counts) - counts
        wide = 2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
        width = np.where(counts <= OWN_GROUP, counts, wide)
        by_width = np.argsort(width, kind="stable")
        place = np.empty(values, np.int64)
        place[by_width] = np.arange(values)
        slots: list[np.ndarray] = []
        real: list[np.ndarray] = []
        groups: list[tuple[int, int, bool]] = []
        for m in np.unique(width):
            of_group = by_width[width[by_width] == m]
            nth = np.arange(m)[None]
            is_real = nth < counts[of_group, None]
            at = first[of_group, None] + np.where(is_real, nth, 0)
            slots.append(order[at].reshape(-1))
            real.append(is_real.reshape(-1))
            groups.append((len(of_group), int(m), not bool(is_real.all())))
        return cls(
            torch.from_numpy(np.concatenate(slots)),
            torch.from_numpy(np.concatenate(real)),
            torch.from_numpy(place),
            tuple(groups),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Readers:
        """On another device."""
        return replace(
            self,
            slots=self.slots.to(device, non_blocking=non_blocking),
            real=self.real.to(device, non_blocking=non_blocking),
            place=self.place.to(device, non_blocking=non_blocking),
        )

    def summed(self, of_slots: Tensor) -> Tensor:
        """What belongs to the slots, [K, ...], summed for each value: [T, ...]."""
        sums = of_slots.new_empty(len(self.place), *of_slots.shape[1:])
        at = value = 0
        for n, m, fills_up in self.groups:
            slots, out = self.slots[at : at + n * m], sums[value : value + n]
            if m == 1:
                torch.index_select(of_slots, 0, slots, out=out)
            else:
                read = of_slots.index_select(0, slots)
                if fills_up:
                    real = self.real[at : at + n * m].view(-1, *(1,) * (of_slots.dim() - 1))
                    read.masked_fill_(~real, 0)
                # In 16 bits, a sum is taken in float32 and rounded once.
                torch.sum(read.view(n, m, *of_slots.shape[1:]), dim=1, out=out)
            at, value = at + n * m, value + n
        return sums.index_select(0, self.place)


def gathered(values: Tensor, places: Tensor, readers: Readers) -> Tensor:
    """`values[places]` with a gradient that is summed by `readers`.

    Args:
        values: [T, ...].
        places: [K] int64.
        readers: of these places.

    Returns:
        [K, ...], contiguous.
    """
    return _Gathered.apply(values, places, readers)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, readers: Readers) -> Tensor:
        ctx.readers = readers
        return values.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.readers.summed(grad), None, None
