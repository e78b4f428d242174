"""One forward pass: what the model reads, and where the log-probs of each row come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from align.forest.chains import GatheredChains, SegmentedChains, Visibility
from align.forest.radix import SHORTEST_SHARED, Forest, grow
from align.forest.rows import TokenRow
from align.types import Logps

# Any token does: right of a row, nothing that is scored looks at it.
PAD_ID = 0
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Pack:
    """R rows laid out for one forward pass over N x S slots, with E scored edges.

    An edge is a token whose log-prob is wanted; rows that share the token share the edge.

    Attributes:
        input_ids: [N, S] int64; N is 1 for a forest and R for padded rows.
        position_ids: [1, S] int64 for a forest, else None.
        attention_mask: [N, S] int64 for padded rows, else None.
        tree: what is visible in a forest, else None.
        predictor: [E] slot, among all N * S, whose hidden state predicts the edge's token.
        target: [E] the edge's token.
        index: [R, W] the edge of each row's scored tokens, left-aligned.
        mask: [R, W] True where `index` means something.
        multiplicity: [N, S] float32, how many rows a slot stands for; 0 for padding.
        lengths: scored tokens of each row.
        row_tokens: tokens of all rows, shared ones counted for each.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    attention_mask: Tensor | None
    tree: Visibility | None
    predictor: Tensor
    target: Tensor
    index: Tensor
    mask: Tensor
    multiplicity: Tensor
    lengths: tuple[int, ...]
    row_tokens: int

    @property
    def implementation(self) -> str | None:
        """The attention function this layout is for; None means the model's own."""
        return None if self.tree is None else self.tree.implementation

    @property
    def computed_tokens(self) -> int:
        """Slots that the model computes, padding included."""
        return self.input_ids.numel()

    def rows(
        self, start: int, stop: int, edge: Tensor, beside: Mapping[str, Tensor] = NOTHING
    ) -> Logps:
        """Values at the edges, [E], as those of rows [start, stop): [stop - start, T].

        The gradient of a shared edge is the sum over the rows that share it.

        Args:
            start: the first row.
            stop: the row behind the last one.
            edge: what stands in `token`.
            beside: what stands in further fields of `Logps`, by their names, [E] each.
        """
        width = max(self.lengths[start:stop], default=0)
        index, mask = self.index[start:stop, :width], self.mask[start:stop, :width]

        def of_rows(values: Tensor) -> Tensor:
            return values.to(index.device)[index].masked_fill(~mask, 0.0)

        others = {name: of_rows(values) for name, values in beside.items()}
        return Logps(of_rows(edge), mask, **others)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pack:
        """On another device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        tree = None if self.tree is None else self.tree.to(device, non_blocking)
        return replace(self, tree=tree, **moved)

    def pin_memory(self) -> Pack:
        """In pinned memory, for the data loader."""
        pinned = {
            name: value.pin_memory() for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **pinned)


def tree_pack(rows: Sequence[TokenRow], shortest_shared: int = SHORTEST_SHARED) -> Pack:
    """Rows as a forest, for attention `tree`."""
    forest = grow([row.tokens() for row in rows], shortest_shared)
    return _forest_pack(rows, forest, SegmentedChains.of(forest))


def tree_varlen_pack(rows: Sequence[TokenRow], shortest_shared: int = SHORTEST_SHARED) -> Pack:
    """Rows as a forest, for attention `tree_varlen`."""
    forest = grow([row.tokens() for row in rows], shortest_shared)
    return _forest_pack(rows, forest, GatheredChains.of(forest))


def padded_pack(rows: Sequence[TokenRow]) -> Pack:
    """One right-padded row per sequence, for the model's own attention.

    Right padding needs no position ids: a causal model never looks at what follows a token.
    """
    width = max(len(row) for row in rows)
    input_ids = np.full((len(rows), width), PAD_ID, np.int64)
    filled = np.zeros((len(rows), width), np.int64)
    predictor: list[np.ndarray] = []
    for r, row in enumerate(rows):
        input_ids[r, : len(row)] = row.tokens()
        filled[r, : len(row)] = 1
        predictor.append(r * width + np.arange(row.first_scored - 1, len(row) - 1))
    edges = np.concatenate(predictor)
    ends = np.cumsum([len(scored) for scored in predictor])
    index, mask, lengths = _index(np.split(np.arange(len(edges)), ends[:-1]))
    return Pack(
        input_ids=torch.from_numpy(input_ids),
        position_ids=None,
        attention_mask=torch.from_numpy(filled),
        tree=None,
        predictor=torch.from_numpy(edges),
        target=torch.from_numpy(input_ids.reshape(-1)[edges + 1]),
        index=index,
        mask=mask,
        lengths=lengths,
        multiplicity=torch.from_numpy(filled.astype(np.float32)),
        row_tokens=sum(len(row) for row in rows),
    )


def _forest_pack(rows: Sequence[TokenRow], forest: Forest, tree: Visibility) -> Pack:
    size = len(forest.ids)
    scored = [places[row.first_scored :] for row, places in zip(rows, forest.places, strict=True)]
    is_edge = np.zeros(size, bool)
    multiplicity = np.zeros(size, np.float32)
    for places, edges in zip(forest.places, scored, strict=True):
        is_edge[edges] = True
        multiplicity[places] += 1
    number = is_edge.cumsum() - 1
    nodes = np.flatnonzero(is_edge)
    index, mask, lengths = _index([number[edges] for edges in scored])
    return Pack(
        input_ids=torch.from_numpy(forest.ids)[None],
        position_ids=torch.from_numpy(forest.position)[None],
        attention_mask=None,
        tree=tree,
        predictor=torch.from_numpy(forest.parent[nodes]),
        target=torch.from_numpy(forest.ids[nodes]),
        index=index,
        mask=mask,
        lengths=lengths,
        multiplicity=torch.from_numpy(multiplicity)[None],
        row_tokens=sum(len(row) for row in rows),
    )


def _index(numbers: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """`index`, `mask` and `lengths` of a pack from the edges of each row."""
    lengths = tuple(len(row) for row in numbers)
    index = np.zeros((len(numbers), max(lengths)), np.int64)
    for r, row in enumerate(numbers):
        index[r, : len(row)] = row
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    return torch.from_numpy(index), torch.from_numpy(mask), lengths
