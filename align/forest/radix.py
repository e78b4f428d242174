"""Token rows -> radix forest: each unique prefix once, depth-first.

Prefixes are found by comparing tokens, so shared openings of two completions, turns of a
conversation, K samples of a prompt and nested search steps need no word about them in the data.

Sorting the rows puts those that share a prefix side by side, and the length of the prefix common to
two neighbours (`common`) says all about the tree: a stretch of neighbours whose smallest common
prefix is n tokens long is the subtree under a node at depth n. Cost: one byte-wise sort and one
comparison of neighbours, both linear in tokens for what they look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# A shared stretch at the root saves its tokens and costs a rectangular instead of a causal
# attention call per further row; a lone beginning-of-text token is not worth it.
SHORTEST_SHARED = 8


@dataclass(frozen=True)
class Segment:
    """An unbranched stretch of tokens.

    Attributes:
        start: where it begins in the layout.
        stop: one past its last token.
        parent: number of the segment it hangs below, -1 at a root.
        depth: position of its first token in its sequence.
    """

    start: int
    stop: int
    parent: int
    depth: int


@dataclass(frozen=True, eq=False)
class Forest:
    """The layout of T tokens; segments are in depth-first order, the longest child first.

    Attributes:
        ids: [T] token ids.
        position: [T] depth in the sequence, which is the position id; siblings repeat it.
        parent: [T] place of the token before it, -1 at a root.
        segments: the stretches, in layout order.
        places: for each row given, [len(row)] places of its tokens.
    """

    ids: np.ndarray
    position: np.ndarray
    parent: np.ndarray
    segments: list[Segment]
    places: list[np.ndarray]

    def path(self, segment: int) -> list[int]:
        """Numbers of the segments from the root to `segment`, both included."""
        path = []
        while segment >= 0:
            path.append(segment)
            segment = self.segments[segment].parent
        return path[::-1]


@dataclass(frozen=True, eq=False)
class SortedRows:
    """Distinct token rows in lexicographic order.

    Attributes:
        rows: the distinct rows.
        rank: for each row given, its place among `rows`.
        common: [len(rows)] tokens that a row shares with the one before it; 0 for the first, and
            where fewer than `shortest_shared` are shared.
    """

    rows: list[np.ndarray]
    rank: list[int]
    common: np.ndarray

    def shared(self, first: int, second: int) -> int:
        """Tokens that two rows share, given by rank."""
        low, high = sorted((first, second))
        return len(self.rows[low]) if low == high else int(self.common[low + 1 : high + 1].min())


def sort_rows(rows: Sequence[np.ndarray], shortest_shared: int = SHORTEST_SHARED) -> SortedRows:
    """Sorts rows so that those with a common prefix are neighbours, and drops copies.

    Args:
        rows: token ids, [len] int32 each, none empty.
        shortest_shared: prefixes shorter than this are computed for each row on its own; a number
            above every row's length switches sharing off, copies of a whole row excepted.
    """
    # Big-endian bytes of non-negative numbers sort as the numbers do.
    keys = [row.astype(">i4").tobytes() for row in rows]
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    distinct = [np.frombuffer(key, ">i4").astype(np.int64) for key in order]
    common = np.zeros(len(distinct), np.int64)
    for i in range(1, len(distinct)):
        before, row = distinct[i - 1], distinct[i]
        n = min(len(before), len(row))
        differs = before[:n] != row[:n]
        same = int(differs.argmax()) if differs.any() else n
        common[i] = same if same >= shortest_shared else 0
    return SortedRows(distinct, [order[key] for key in keys], common)


def grow(rows: Sequence[np.ndarray], shortest_shared: int = SHORTEST_SHARED) -> Forest:
    """The forest of `rows` (token ids, [len] int32 each, none empty)."""
    ordered = sort_rows(rows, shortest_shared)
    lengths = np.array([len(row) for row in ordered.rows])
    segments: list[Segment] = []
    pieces: list[np.ndarray] = []
    last_segment = [0] * len(ordered.rows)
    size = 0
    # Stretches [low, high) of sorted rows that agree up to `depth`; the last one comes next.
    waiting = [
        (low, high, 0, -1) for low, high in _split(ordered.common, 0, len(ordered.rows), at=0)[::-1]
    ]
    while waiting:
        low, high, depth, parent = waiting.pop()
        alone = high - low == 1
        stop = int(lengths[low]) if alone else int(ordered.common[low + 1 : high].min())
        number = len(segments)
        segments.append(Segment(size, size + stop - depth, parent, depth))
        pieces.append(ordered.rows[low][depth:stop])
        size += stop - depth
        if lengths[low] == stop:
            last_segment[low] = number
            low += 1
        children = _split(ordered.common, low, high, at=stop)
        # That child follows its parent without a gap, so both are one causal attention call.
        children.sort(key=lambda child: int(lengths[child[0] : child[1]].max()))
        waiting += [(*child, stop, number) for child in children]

    forest = Forest(
        ids=np.concatenate(pieces),
        position=np.concatenate([np.arange(s.depth, s.depth + s.stop - s.start) for s in segments]),
        parent=np.arange(-1, size - 1),
        segments=segments,
        places=[],
    )
    for segment in segments:
        above = segments[segment.parent].stop - 1 if segment.parent >= 0 else -1
        forest.parent[segment.start] = above
    stretches = [np.arange(segment.start, segment.stop) for segment in segments]
    places = [
        np.concatenate([stretches[number] for number in forest.path(last)]) for last in last_segment
    ]
    forest.places.extend(places[rank] for rank in ordered.rank)
    return forest


def _split(common: np.ndarray, low: int, high: int, at: int) -> list[tuple[int, int]]:
    """Stretches of [low, high) whose rows share more than `at` tokens with one another."""
    if low == high:
        return []
    borders = [low, *(low + 1 + np.flatnonzero(common[low + 1 : high] == at)).tolist(), high]
    return list(pairwise(borders))
