"""Forest -> which tiles of the attention matrix hold anything: what FlexAttention needs.

One integer per token says all about visibility: a key k is seen by a query q where k <= q < end[k],
and `end` is one past the last token below the key's stretch. So whether a tile of 128 x 128 is
empty, whole or cut follows from the largest and smallest `end` of its keys, without a look at its
16,384 entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.forest.radix import Forest

# Tokens along the side of a tile: FlexAttention's own.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class BlockedForest:
    """For backend `tree_flex`, which calls a kernel once, on keys where they are.

    Slots behind the forest fill its last tile; each sees itself.

    Attributes:
        end: [S] int32, one past the last slot that sees a key; S is a multiple of `BLOCK`.
        position: [S] int32 depth in the sequence.
        visible: the same two on the host, from which tiles are found.
        masks: FlexAttention's masks that were made of it, by window.
    """

    end: Tensor
    position: Tensor
    visible: tuple[np.ndarray, np.ndarray]
    implementation: str = "tree_flex"
    masks: dict[int | None, Any] = field(default_factory=dict[int | None, Any], repr=False)

    @classmethod
    def of(cls, forest: Forest) -> BlockedForest:
        """Of a forest."""
        size = len(forest.ids)
        slots = -(-size // BLOCK) * BLOCK
        end = np.arange(1, slots + 1, dtype=np.int32)
        end[:size] = ends_of(forest)
        position = np.zeros(slots, np.int32)
        position[:size] = forest.position
        return cls(torch.from_numpy(end), torch.from_numpy(position), (end, position))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BlockedForest:
        """On another device."""
        return replace(
            self,
            end=self.end.to(device, non_blocking=non_blocking),
            position=self.position.to(device, non_blocking=non_blocking),
            masks={},
        )

    def mask(self, window: int | None) -> Any:
        """FlexAttention's `BlockMask`, made once for all layers with that window.

        Args:
            window: keys that a query sees at most, itself included.
        """
        if window not in self.masks:
            self.masks[window] = self._made(window)
        return self.masks[window]

    def _made(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        end, position = self.end, self.position

        def below(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k <= q) & (q < end[k])

        def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            assert window is not None
            return (k <= q) & (q < end[k]) & (position[q] - position[k] < window)

        cut, whole = tiles(*self.visible, window)
        lists = [self._listed(of) for of in (cut, whole)]
        return BlockMask.from_kv_blocks(
            *lists[0],
            *lists[1],
            BLOCK_SIZE=BLOCK,
            mask_mod=below if window is None else near,
        )

    def _listed(self, tile: np.ndarray) -> tuple[Tensor, Tensor]:
        """Per row of tiles, how many are marked, and the columns, those that are marked first."""
        count = tile.sum(axis=1, dtype=np.int32)[None, None]
        order = np.argsort(~tile, axis=1, kind="stable").astype(np.int32)[None, None]
        device = self.end.device
        return torch.from_numpy(count).to(device), torch.from_numpy(order).to(device)


def ends_of(forest: Forest) -> np.ndarray:
    """[T] one past the last token of the subtree below a token's segment."""
    ends = [segment.stop for segment in forest.segments]
    # Children come behind their parents, so each is done before it is looked at.
    for number in range(len(ends) - 1, -1, -1):
        parent = forest.segments[number].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[number])
    return np.repeat(ends, [segment.stop - segment.start for segment in forest.segments])


def tiles(
    end: np.ndarray, position: np.ndarray, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which tiles are cut, and which are whole.

    Args:
        end: [S], S a multiple of `BLOCK`; as in `BlockedForest`.
        position: [S].
        window: keys that a query sees at most, itself included.

    Returns:
        [S / BLOCK, S / BLOCK] bool each, queries by keys: some entries are seen but not all; all.
    """
    ends, places = end.reshape(-1, BLOCK), position.reshape(-1, BLOCK)
    count = len(ends)
    first = np.arange(count) * BLOCK
    before = first[:, None] > first[None, :]
    # A key of an earlier tile that the first query does not see is not seen by later ones either.
    some = before & (ends.max(axis=1)[None, :] > first[:, None])
    whole = before & (ends.min(axis=1)[None, :] >= first[:, None] + BLOCK)
    if window is not None:
        whole &= places.max(axis=1)[:, None] - places.min(axis=1)[None, :] < window
        rows, columns = np.nonzero(some)
        # The queries of a tile that lie below a key are its first ones.
        below = np.clip(ends[columns] - first[rows, None], 0, BLOCK)
        nearest = np.minimum.accumulate(places, axis=1)[rows[:, None], np.maximum(below, 1) - 1]
        reached = (below > 0) & (nearest - places[columns] < window)
        some[rows, columns] = reached.any(axis=1)
    # Every token sees itself, and none sees those behind it.
    np.fill_diagonal(some, True)
    return some & ~whole, whole
