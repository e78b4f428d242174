"""Forest -> what an attention kernel needs: chains of queries and the keys that each one sees.

A chain follows first children from a segment on: its tokens lie side by side in the layout. Its
keys are those of its ancestors and its own, one path from the root in the order of positions. So
the mask of every chain is causal, aligned at the lower right: the last query sees all keys. And a
distance along the path is a distance between positions, so a sliding window is a band.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from align.forest.gather import Readers
from align.forest.radix import Forest


@dataclass(frozen=True)
class Chain:
    """Queries [start, stop) of the layout; `ancestors` are the keys before them, root first."""

    start: int
    stop: int
    ancestors: tuple[tuple[int, int], ...]


class Visibility(Protocol):
    """What travels to attention as the keyword argument `tree`."""

    @property
    def implementation(self) -> str:
        """Name of the attention function it is for."""
        ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Visibility:
        """On another device."""
        ...


def chains_of(forest: Forest) -> list[Chain]:
    """The chains, in layout order; they partition the queries."""
    chains: list[Chain] = []
    segments = forest.segments
    first = 0
    while first < len(segments):
        last = first
        while last + 1 < len(segments) and segments[last + 1].parent == last:
            last += 1
        spans: list[tuple[int, int]] = []
        for number in forest.path(segments[first].parent):
            start, stop = segments[number].start, segments[number].stop
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start, stop))
        chains.append(Chain(segments[first].start, segments[last].stop, tuple(spans)))
        first = last + 1
    return chains


@dataclass(frozen=True)
class SegmentedChains:
    """For backend `tree`, which calls a kernel once per chain.

    Attributes:
        sizes: lengths of the stretches between all borders of chains and of their ancestors.
        queries: per chain, the stretches that it consists of: [first, last).
        keys: per chain, the stretches of its ancestors, in order.
        masks: those that attention has made for these chains.
    """

    sizes: tuple[int, ...]
    queries: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, ...], ...]
    implementation: str = "tree"
    masks: dict[Hashable, Tensor] = field(
        default_factory=dict[Hashable, Tensor], compare=False, repr=False
    )

    @classmethod
    def of(cls, forest: Forest) -> SegmentedChains:
        """Of a forest."""
        chains = chains_of(forest)
        spans = [(c.start, c.stop) for c in chains] + [s for c in chains for s in c.ancestors]
        borders = sorted({place for span in spans for place in span})
        number = {place: i for i, place in enumerate(borders)}
        return cls(
            sizes=tuple(b - a for a, b in pairwise(borders)),
            queries=tuple((number[c.start], number[c.stop]) for c in chains),
            keys=tuple(
                tuple(i for a, b in c.ancestors for i in range(number[a], number[b]))
                for c in chains
            ),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SegmentedChains:
        """The same: nothing here lies on a device."""
        del device, non_blocking
        return self


@dataclass(frozen=True, eq=False)
class GatheredChains:
    """For backend `tree_varlen`, which gathers keys and calls a kernel once.

    Attributes:
        gather: [K] places of all chains' keys, one chain after the other.
        query_borders: [C+1] int32, where chains begin among the queries.
        key_borders: [C+1] int32, where their keys begin in `gather`.
        longest_query: queries of the longest chain.
        longest_key: keys of the chain that sees most.
        readers: of each key, the slots of `gather` that read it.
    """

    gather: Tensor
    query_borders: Tensor
    key_borders: Tensor
    longest_query: int
    longest_key: int
    readers: Readers
    implementation: str = "tree_varlen"

    @classmethod
    def of(cls, forest: Forest) -> GatheredChains:
        """Of a forest."""
        chains = chains_of(forest)
        keys = [
            np.concatenate([np.arange(a, b) for a, b in (*c.ancestors, (c.start, c.stop))])
            for c in chains
        ]
        queries = [c.stop - c.start for c in chains]
        gather = np.concatenate(keys)
        return cls(
            gather=torch.from_numpy(gather),
            query_borders=_borders(queries),
            key_borders=_borders([len(k) for k in keys]),
            longest_query=max(queries),
            longest_key=max(len(k) for k in keys),
            readers=Readers.of(gather, len(forest.ids)),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GatheredChains:
        """On another device."""
        return replace(
            self,
            gather=self.gather.to(device, non_blocking=non_blocking),
            query_borders=self.query_borders.to(device, non_blocking=non_blocking),
            key_borders=self.key_borders.to(device, non_blocking=non_blocking),
            readers=self.readers.to(device, non_blocking),
        )


def _borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
