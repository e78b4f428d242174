"""A forest holds every unique prefix once, depth-first, and every row can be read back from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.forest import TokenRow
from align.forest.radix import SHORTEST_SHARED, Forest, Segment, grow, sort_rows

# Two tokens, so that rows share much; 2**24 and 300 order otherwise as bytes of either end.
TOKENS = st.sampled_from([1, 2])
FAR_TOKENS = st.sampled_from([0, 1, 255, 256, 300, 2**24, 2**31 - 1])
ROWS = st.lists(
    st.one_of(
        st.lists(TOKENS, min_size=1, max_size=9), st.lists(FAR_TOKENS, min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=9,
)
SHORTEST = st.sampled_from([1, 2, 3, 5, 1000])
thorough = settings(max_examples=100, deadline=None)


def arrays(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def unique_by_brute_force(rows: Sequence[Sequence[int]], shortest: int) -> int:
    """Rows share what they have in common if that is `shortest` tokens long, or the whole row."""
    nodes = set()
    for row in {tuple(row) for row in rows}:
        # A row is alone among shorter ones than `shortest`; so its tree is named by all of it.
        tree = row[:shortest] if len(row) >= shortest else (*row, -1)
        nodes |= {(tree, row[: n + 1]) for n in range(len(row))}
    return len(nodes)


@thorough
@given(rows=ROWS, shortest=SHORTEST)
def test_rows_read_back_along_their_parents(rows: list[list[int]], shortest: int) -> None:
    forest = grow(arrays(rows), shortest)
    assert len(forest.places) == len(rows)
    for row, places in zip(rows, forest.places, strict=True):
        assert forest.ids[places].tolist() == row
        assert forest.position[places].tolist() == list(range(len(row)))
        assert forest.parent[places].tolist() == [-1, *places[:-1].tolist()]
        assert np.all(np.diff(places) > 0)


@thorough
@given(rows=ROWS, shortest=SHORTEST)
def test_every_unique_prefix_is_there_once(rows: list[list[int]], shortest: int) -> None:
    forest = grow(arrays(rows), shortest)
    size = unique_by_brute_force(rows, shortest)
    assert len(forest.ids) == len(forest.position) == len(forest.parent) == size
    # Nothing that no row needs.
    assert len(np.unique(np.concatenate(forest.places))) == size


def subtree(forest: Forest, segment: int) -> list[int]:
    return [n for n in range(len(forest.segments)) if segment in forest.path(n)]


@thorough
@given(rows=ROWS, shortest=SHORTEST)
def test_segments_are_depth_first_and_the_longest_child_comes_first(
    rows: list[list[int]], shortest: int
) -> None:
    forest = grow(arrays(rows), shortest)
    segments = forest.segments
    borders = [(s.start, s.stop) for s in segments]
    assert [start for start, _ in borders] == [0, *(stop for _, stop in borders[:-1])]
    assert borders[-1][1] == len(forest.ids)
    assert all(start < stop for start, stop in borders)
    for number, segment in enumerate(segments):
        assert segment.depth == forest.position[segment.start]
        if segment.parent >= 0:
            assert segment.depth == forest.position[segments[segment.parent].stop - 1] + 1
        below = subtree(forest, number)
        assert below == list(range(number, number + len(below)))
        children = [n for n, s in enumerate(segments) if s.parent == number]
        if children:
            assert children[0] == number + 1
            deepest = [
                max(forest.position[segments[n].stop - 1] for n in subtree(forest, child))
                for child in children
            ]
            assert deepest[0] == max(deepest)
            # Each stretch is as long as it can be.
            first_tokens = [forest.ids[segments[child].start] for child in children]
            assert len(set(first_tokens)) == len(children)
            ends_here = any(places[-1] == segment.stop - 1 for places in forest.places)
            assert len(children) > 1 or ends_here


@thorough
@given(rows=ROWS, shortest=SHORTEST)
def test_shared_counts_common_tokens_of_any_two_rows(rows: list[list[int]], shortest: int) -> None:
    ordered = sort_rows(arrays(rows), shortest)
    assert [ordered.rows[rank].tolist() for rank in ordered.rank] == rows
    assert len(ordered.rows) == len({tuple(row) for row in rows})
    for first, a in enumerate(rows):
        for second, b in enumerate(rows):
            differs = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
            common = differs[0] if differs else min(len(a), len(b))
            if a != b and common < shortest:
                common = 0
            assert ordered.shared(ordered.rank[first], ordered.rank[second]) == common


def test_by_hand() -> None:
    """Two trees; in the first, a trunk of two, a fork in which one branch forks again, a copy."""
    rows = [[1, 2, 3], [1, 2, 4, 5, 6], [1, 2, 4, 7], [1, 2], [1, 2, 3], [9]]
    forest = grow(arrays(rows), shortest_shared=1)
    assert forest.ids.tolist() == [1, 2, 4, 5, 6, 7, 3, 9]
    assert forest.position.tolist() == [0, 1, 2, 3, 4, 3, 2, 0]
    assert forest.parent.tolist() == [-1, 0, 1, 2, 3, 2, 1, -1]
    assert forest.segments == [
        Segment(start=0, stop=2, parent=-1, depth=0),
        Segment(start=2, stop=3, parent=0, depth=2),
        Segment(start=3, stop=5, parent=1, depth=3),
        Segment(start=5, stop=6, parent=1, depth=3),
        Segment(start=6, stop=7, parent=0, depth=2),
        Segment(start=7, stop=8, parent=-1, depth=0),
    ]
    assert [places.tolist() for places in forest.places] == [
        [0, 1, 6],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [0, 1],
        [0, 1, 6],
        [7],
    ]
    assert forest.path(3) == [0, 1, 3]
    assert forest.path(5) == [5]


def test_sharing_off_leaves_every_distinct_row_a_root() -> None:
    rows = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3], [1]]
    forest = grow(arrays(rows), shortest_shared=10**6)
    assert [(s.parent, s.depth) for s in forest.segments] == [(-1, 0)] * 3
    assert len(forest.ids) == 3 + 4 + 1
    assert forest.places[0].tolist() == forest.places[2].tolist()


@pytest.mark.parametrize(("common", "shared"), [(SHORTEST_SHARED - 1, 0), (SHORTEST_SHARED, 8)])
def test_a_short_common_opening_is_not_shared(common: int, shared: int) -> None:
    rows = [[*range(common), 50, 51], [*range(common), 60]]
    forest = grow(arrays(rows))
    assert len(forest.ids) == 2 * common + 3 - shared


def test_two_thousand_rows_inside_one_another() -> None:
    """A row for every step of one long way, and a branch off each: nothing here recurses."""
    way = np.arange(2000, dtype=np.int32) % 997
    rows = [row for n in range(1, 2001, 2) for row in (way[:n], np.append(way[:n], 5000))]
    forest = grow(rows, shortest_shared=1)
    assert len(forest.ids) == 1999 + 1000
    # Per fork of the way a trunk and a leaf; at its end the leaf goes on from the trunk.
    assert len(forest.segments) == 2 * 1000
    assert forest.ids[forest.places[-1]].tolist() == [*way[:1999].tolist(), 5000]
    assert forest.places[-2].tolist() == list(range(1999))


def test_a_row_is_prompt_and_completion() -> None:
    row = TokenRow([3, 4], [5])
    assert len(row) == 3
    assert row.tokens().tolist() == [3, 4, 5]
    assert row.tokens().dtype == np.int32
    assert row.first_scored == 2
    assert TokenRow([], [5, 6]).first_scored == 1
