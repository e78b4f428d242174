"""What chains make visible is exactly a token's ancestors and itself, for both backends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.forest.chains import Chain, GatheredChains, SegmentedChains, chains_of
from align.forest.radix import Forest, grow

ROWS = st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=9), min_size=1, max_size=10)
FORESTS = st.builds(
    lambda rows, shortest: grow([np.array(row, np.int32) for row in rows], shortest),
    ROWS,
    st.sampled_from([1, 1, 2, 4, 1000]),
)
thorough = settings(max_examples=100, deadline=None)


def ancestors(forest: Forest) -> np.ndarray:
    """[T, T] True where the key is the query or is met on the way from it to the root."""
    size = len(forest.ids)
    seen = np.zeros((size, size), bool)
    for query in range(size):
        key = query
        while key >= 0:
            seen[query, key] = True
            key = forest.parent[key]
    return seen


def lower_right(seen: np.ndarray, queries: list[int], keys: list[int]) -> None:
    """Marks what a causal kernel shows when the last query sees all keys."""
    hidden = len(keys) - len(queries)
    for i, query in enumerate(queries):
        for key in keys[: hidden + i + 1]:
            assert not seen[query, key], "seen twice"
            seen[query, key] = True


def by_segments(chains: SegmentedChains) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(chains.sizes)]).tolist()
    seen = np.zeros((starts[-1], starts[-1]), bool)
    for (first, last), before in zip(chains.queries, chains.keys, strict=True):
        own = list(range(starts[first], starts[last]))
        earlier = [place for i in before for place in range(starts[i], starts[i + 1])]
        lower_right(seen, own, earlier + own)
    return seen


def by_gather(chains: GatheredChains) -> np.ndarray:
    size = int(chains.query_borders[-1])
    assert int(chains.key_borders[-1]) == len(chains.gather)
    queries = [t.tolist() for t in torch.arange(size).split(chains.query_borders.diff().tolist())]
    keys = [t.tolist() for t in chains.gather.split(chains.key_borders.diff().tolist())]
    assert chains.longest_query == max(map(len, queries))
    assert chains.longest_key == max(map(len, keys))
    seen = np.zeros((size, size), bool)
    for own, visible in zip(queries, keys, strict=True):
        lower_right(seen, own, visible)
    return seen


@thorough
@given(forest=FORESTS)
def test_a_query_sees_its_ancestors_and_itself(forest: Forest) -> None:
    expected = ancestors(forest)
    assert np.array_equal(by_segments(SegmentedChains.of(forest)), expected)
    assert np.array_equal(by_gather(GatheredChains.of(forest)), expected)


@thorough
@given(forest=FORESTS)
def test_visibility_is_one_integer_per_token(forest: Forest) -> None:
    """A key is visible from itself to the end of what hangs below its stretch."""
    place = np.arange(len(forest.ids))
    end = np.zeros(len(forest.ids), np.int64)
    for number, segment in enumerate(forest.segments):
        below = [s.stop for n, s in enumerate(forest.segments) if number in forest.path(n)]
        end[segment.start : segment.stop] = max(below)
    rule = (place[None, :] <= place[:, None]) & (place[:, None] < end[None, :])
    assert np.array_equal(by_segments(SegmentedChains.of(forest)), rule)
    assert np.array_equal(by_gather(GatheredChains.of(forest)), rule)


@thorough
@given(forest=FORESTS)
def test_keys_of_a_chain_are_in_the_order_of_positions(forest: Forest) -> None:
    """So a distance between keys is a distance between positions, and a window is a band."""
    for chain in chains_of(forest):
        spans = [*chain.ancestors, (chain.start, chain.stop)]
        keys = np.concatenate([np.arange(start, stop) for start, stop in spans])
        assert forest.position[keys].tolist() == list(range(len(keys)))


@thorough
@given(forest=FORESTS)
def test_chains_go_on_as_far_as_they_can(forest: Forest) -> None:
    chains = chains_of(forest)
    assert [c.start for c in chains] == [0, *(c.stop for c in chains[:-1])]
    assert chains[-1].stop == len(forest.ids)
    # One begins at a root or at a child that is not its parent's first, and nowhere else.
    begins = [
        s.start
        for s in forest.segments
        if s.parent < 0 or forest.segments[s.parent].stop != s.start
    ]
    assert [c.start for c in chains] == begins
    for chain in chains:
        spans = chain.ancestors
        assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_by_hand() -> None:
    """Places: 0-1 is the trunk, 2 a fork with 3-4 and 5 below it, 6 the other branch, 7 a root."""
    rows = [[1, 2, 3], [1, 2, 4, 5, 6], [1, 2, 4, 7], [9]]
    forest = grow([np.array(row, np.int32) for row in rows], shortest_shared=1)
    assert chains_of(forest) == [
        Chain(0, 5, ()),
        Chain(5, 6, ((0, 3),)),
        Chain(6, 7, ((0, 2),)),
        Chain(7, 8, ()),
    ]
    segmented = SegmentedChains.of(forest)
    assert segmented.implementation == "tree"
    assert segmented.sizes == (2, 1, 2, 1, 1, 1)
    assert segmented.queries == ((0, 3), (3, 4), (4, 5), (5, 6))
    assert segmented.keys == ((), (0, 1), (0,), ())
    gathered = GatheredChains.of(forest)
    assert gathered.implementation == "tree_varlen"
    assert gathered.gather.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 1, 6, 7]
    assert gathered.query_borders.tolist() == [0, 5, 6, 7, 8]
    assert gathered.key_borders.tolist() == [0, 5, 9, 12, 13]
    assert gathered.query_borders.dtype == gathered.key_borders.dtype == torch.int32
    assert (gathered.longest_query, gathered.longest_key) == (5, 5)


def test_to_another_device() -> None:
    forest = grow([np.array([1, 2], np.int32)])
    segmented = SegmentedChains.of(forest)
    assert segmented.to("meta") == segmented
    moved = GatheredChains.of(forest).to("meta")
    tensors = (moved.gather, moved.query_borders, moved.key_borders)
    assert [t.device.type for t in tensors] == ["meta"] * 3
    assert (moved.longest_query, moved.longest_key, moved.implementation) == (2, 2, "tree_varlen")
