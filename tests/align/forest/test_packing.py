"""Units of rows are dealt to forward passes once each, within the budget, along trees."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.forest import TokenRow
from align.forest.pack import padded_pack, tree_pack
from align.forest.packing import cut_forest, cut_padded, unique_tokens

Pairs = list[list[TokenRow]]

TOKENS = st.lists(st.sampled_from([1, 2]), min_size=0, max_size=6)
# Prompts of few kinds, so that pairs meet in trees, and completions that start alike.
ROW = st.builds(TokenRow, st.sampled_from([[3], [3, 1, 2, 1], [4, 4, 4], [5, 5]]), TOKENS)
# Pairs, lone rows, groups.
PAIRS = st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=10)
BUDGETS = st.integers(min_value=1, max_value=60)
SHORTEST = st.sampled_from([1, 3, 5, 1000])
thorough = settings(max_examples=100, deadline=None)


def tokens_of(pairs: Pairs, numbers: list[int], shortest: int) -> int:
    """As many as the model computes in that pass."""
    rows = [row for number in numbers for row in pairs[number]]
    return tree_pack(rows, shortest).computed_tokens


def trees_of(pairs: Pairs, shortest: int) -> list[set[int]]:
    """Pairs joined, over any number of others, by openings of at least `shortest` tokens."""

    def alike(a: TokenRow, b: TokenRow) -> bool:
        x, y = a.tokens().tolist(), b.tokens().tolist()
        return x == y or (min(len(x), len(y)) >= shortest and x[:shortest] == y[:shortest])

    trees: list[set[int]] = []
    for number, pair in enumerate(pairs):
        joined = [
            tree
            for tree in trees
            if any(alike(a, b) for other in tree for a in pair for b in pairs[other])
        ]
        trees = [tree for tree in trees if tree not in joined]
        trees.append({number}.union(*joined))
    return trees


@thorough
@given(pairs=PAIRS, shortest=SHORTEST)
def test_tokens_are_counted_as_they_are_computed(pairs: Pairs, shortest: int) -> None:
    everything = list(range(len(pairs)))
    rows = [row for pair in pairs for row in pair]
    assert unique_tokens(rows, shortest) == tokens_of(pairs, everything, shortest)


@thorough
@given(pairs=PAIRS, budget=BUDGETS, shortest=SHORTEST)
def test_every_pair_once_and_within_the_budget(pairs: Pairs, budget: int, shortest: int) -> None:
    passes = cut_forest(pairs, budget, shortest)
    assert sorted(number for one in passes for number in one) == list(range(len(pairs)))
    for one in passes:
        assert one == sorted(one)
        assert len(one) == 1 or tokens_of(pairs, one, shortest) <= budget


@thorough
@given(pairs=PAIRS, budget=BUDGETS, shortest=SHORTEST)
def test_a_tree_that_fits_stays_together(pairs: Pairs, budget: int, shortest: int) -> None:
    passes = cut_forest(pairs, budget, shortest)
    for tree in trees_of(pairs, shortest):
        if tokens_of(pairs, sorted(tree), shortest) <= budget:
            assert any(tree <= set(one) for one in passes)


@thorough
@given(pairs=PAIRS, shortest=SHORTEST)
def test_a_budget_of_just_all_tokens_is_one_pass(pairs: Pairs, shortest: int) -> None:
    """So sizes are not overestimated."""
    everything = list(range(len(pairs)))
    size = tokens_of(pairs, everything, shortest)
    assert cut_forest(pairs, size, shortest) == [everything]
    if len(pairs) > 1:
        assert len(cut_forest(pairs, size - 1, shortest)) > 1


def some_pairs(prompts: list[list[int]], lengths: list[int], seed: int = 0) -> Pairs:
    source = random.Random(seed)
    return [
        [TokenRow(prompt, [source.randrange(100, 10**6) for _ in range(n)]) for _ in range(2)]
        for prompt, n in zip(prompts, lengths, strict=True)
    ]


def test_first_fit_decreasing_by_hand() -> None:
    """Sizes 14, 20, 16, 12, 18 in 34: 20+14, 18+16, 12; in order it would be 14+20, 16+12, 18."""
    pairs = some_pairs([[n] * 10 for n in range(5)], [2, 5, 3, 1, 4])
    assert [tokens_of(pairs, [n], 8) for n in range(5)] == [14, 20, 16, 12, 18]
    assert cut_forest(pairs, 34) == [[0, 1], [2, 4], [3]]
    assert cut_forest(pairs, 32) == [[1, 3], [0, 4], [2]]


def test_a_tree_beyond_the_budget_is_cut_along_its_branches() -> None:
    """A trunk of 20, two branches of 20 with two pairs each, in turns."""
    branches = [[7] * 20 + [8] * 20, [7] * 20 + [9] * 20]
    pairs = some_pairs([branches[0], branches[1], branches[0], branches[1]], [5] * 4)
    assert tokens_of(pairs, [0, 1, 2, 3], 8) == 20 + 2 * 20 + 8 * 5
    assert tokens_of(pairs, [0, 2], 8) == tokens_of(pairs, [1, 3], 8) == 60
    for budget in (60, 89):
        assert cut_forest(pairs, budget) == [[0, 2], [1, 3]]
    # A pass takes of the next branch what fits.
    assert sorted(map(len, cut_forest(pairs, 90))) == [1, 3]
    assert sorted(cut_forest(pairs, 59)) == [[0], [1], [2], [3]]
    assert cut_forest(pairs, 100) == [[0, 1, 2, 3]]


def test_a_piece_of_a_tree_leaves_room_for_others() -> None:
    pairs = some_pairs([[7] * 20, [7] * 20, [7] * 20, [3] * 10], [10, 10, 10, 5])
    passes = cut_forest(pairs, 60)
    assert sorted(map(len, passes)) == [2, 2]
    assert tokens_of(pairs, [0, 1, 2, 3], 8) == 80 + 20
    assert any(3 in one and len(one) == 2 for one in passes)


def test_pairs_are_never_torn_even_if_their_rows_share_nothing() -> None:
    a, b, c = ([n] * 10 for n in (1, 2, 3))
    pairs = [[TokenRow(a, [1]), TokenRow(b, [1])], [TokenRow(b, [2]), TokenRow(c, [2])]]
    # b joins them into one tree of 11 + 12 + 11 tokens.
    assert cut_forest(pairs, 34) == [[0, 1]]
    assert sorted(cut_forest(pairs, 33)) == [[0], [1]]


def test_a_pair_beyond_the_budget_is_a_pass_of_its_own() -> None:
    pairs = some_pairs([[1] * 10, [2] * 30, [3] * 10], [2, 30, 2])
    assert sorted(cut_forest(pairs, 28)) == [[0, 2], [1]]
    assert sorted(cut_padded(pairs, 48)) == [[0, 2], [1]]


@pytest.mark.parametrize("cut", [cut_forest, cut_padded])
def test_no_budget_is_one_pass(cut) -> None:
    pairs = some_pairs([[n] * 10 for n in range(5)], [2, 50, 3, 1, 4])
    assert cut(pairs, None) == [[0, 1, 2, 3, 4]]


@thorough
@given(pairs=PAIRS, budget=BUDGETS)
def test_padded_passes(pairs: Pairs, budget: int) -> None:
    passes = cut_padded(pairs, budget)
    assert sorted(number for one in passes for number in one) == list(range(len(pairs)))
    width = [max(map(len, pair)) for pair in pairs]
    for number, one in enumerate(passes):
        slots = padded_pack([row for n in one for row in pairs[n]]).computed_tokens
        rows = sum(len(pairs[n]) for n in one)
        assert slots == rows * max(width[n] for n in one)
        assert len(one) == 1 or slots <= budget
        if number + 1 < len(passes):
            after = passes[number + 1]
            # Sorted by length, and no pass ends early: one more unit would have been too many.
            assert min(width[n] for n in one) >= max(width[n] for n in after)
            more = rows + len(pairs[after[0]])
            assert more * max(width[n] for n in one) > budget
