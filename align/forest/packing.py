"""Pairs of one batch -> forward passes within a token budget.

Only the borders of forward passes move: which pairs make an optimizer step is the caller's choice,
and a pair is never torn apart, since its loss needs both log-probs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from align.forest.radix import SHORTEST_SHARED, SortedRows, sort_rows
from align.forest.rows import TokenRow


def cut_forest(
    chosen: Sequence[TokenRow],
    rejected: Sequence[TokenRow],
    token_budget: int | None,
    shortest_shared: int = SHORTEST_SHARED,
) -> list[list[int]]:
    """Pairs whose forests hold at most `token_budget` unique tokens.

    Pairs that share prefixes stay together, as trees; the trees are packed first-fit decreasing. A
    tree larger than the budget is cut between pairs, along its branches, and each part computes its
    way from the root again. A pair larger than the budget is a pass of its own.

    Returns:
        Numbers of the pairs of each pass.
    """
    pairs = range(len(chosen))
    if token_budget is None:
        return [list(pairs)]
    ordered = sort_rows([row.tokens() for row in (*chosen, *rejected)], shortest_shared)
    ranks = [(ordered.rank[p], ordered.rank[p + len(chosen)]) for p in pairs]
    pieces = [
        piece
        for tree in _trees(ordered, ranks)
        for piece in _cut(ordered, ranks, tree, token_budget)
    ]
    passes: list[list[int]] = []
    room: list[int] = []
    for size, piece in sorted(pieces, key=lambda piece: -piece[0]):
        place = next((i for i, free in enumerate(room) if size <= free), None)
        if place is None:
            passes.append([])
            room.append(token_budget)
            place = -1
        passes[place] += piece
        room[place] -= size
    return [sorted(one) for one in passes]


def cut_padded(
    chosen: Sequence[TokenRow], rejected: Sequence[TokenRow], token_budget: int | None
) -> list[list[int]]:
    """Pairs of similar lengths whose padded rows hold at most `token_budget` slots.

    Returns:
        Numbers of the pairs of each pass; a pair longer than the budget is a pass of its own.
    """
    pairs = range(len(chosen))
    if token_budget is None:
        return [list(pairs)]
    width = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    passes: list[list[int]] = []
    for pair in sorted(pairs, key=lambda p: -width[p]):
        # The first pair of a pass is its longest.
        if passes and 2 * (len(passes[-1]) + 1) * width[passes[-1][0]] <= token_budget:
            passes[-1].append(pair)
        else:
            passes.append([pair])
    return passes


def unique_tokens(
    chosen: Sequence[TokenRow],
    rejected: Sequence[TokenRow],
    shortest_shared: int = SHORTEST_SHARED,
) -> int:
    """Tokens of the forest of these pairs."""
    ordered = sort_rows([row.tokens() for row in (*chosen, *rejected)], shortest_shared)
    return sum(len(row) for row in ordered.rows) - int(ordered.common.sum())


def _trees(ordered: SortedRows, ranks: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Pairs that are connected by shared prefixes or by being one pair."""
    root = (ordered.common == 0).cumsum().tolist()
    # Union-find over roots: a pair whose rows share nothing connects two of them.
    leader = list(range(len(root) + 1))

    def find(tree: int) -> int:
        while leader[tree] != tree:
            leader[tree] = leader[leader[tree]]
            tree = leader[tree]
        return tree

    for first, second in ranks:
        leader[find(root[first])] = find(root[second])
    trees: dict[int, list[int]] = {}
    for pair, (first, _) in enumerate(ranks):
        trees.setdefault(find(root[first]), []).append(pair)
    return list(trees.values())


def _cut(
    ordered: SortedRows, ranks: Sequence[tuple[int, int]], tree: Sequence[int], token_budget: int
) -> list[tuple[int, list[int]]]:
    """The tree's pairs in runs of at most `token_budget` unique tokens: (size, pairs)."""
    pieces: list[tuple[int, list[int]]] = []
    size, pairs, members = 0, list[int](), list[int]()
    for pair in sorted(tree, key=lambda p: sorted(ranks[p])):
        added = _add(ordered, members, ranks[pair])
        if pairs and size + added > token_budget:
            pieces.append((size, pairs))
            size, pairs, members = 0, [], []
            added = _add(ordered, members, ranks[pair])
        size += added
        pairs.append(pair)
    return [*pieces, (size, pairs)]


def _add(ordered: SortedRows, members: list[int], ranks: tuple[int, int]) -> int:
    """Tokens that are new when two rows join the sorted `members`, which it changes."""
    added = 0
    for rank in ranks:
        place = bisect_left(members, rank)
        if place < len(members) and members[place] == rank:
            continue
        neighbours = members[max(place - 1, 0) : place + 1]
        shared = max((ordered.shared(rank, other) for other in neighbours), default=0)
        added += len(ordered.rows[rank]) - shared
        insort(members, rank)
    return added
