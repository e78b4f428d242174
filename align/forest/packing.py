"""Units of one batch -> forward passes within a token budget.

A unit is rows that are never torn apart, since one loss needs the log-probs of all of them: the two
sides of a pair, the completions of a group. Only the borders of forward passes move: which units
make an optimizer step is the caller's choice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import pairwise

from align.forest.blocks import BLOCK
from align.forest.radix import SHORTEST_SHARED, SortedRows, sort_rows
from align.forest.rows import TokenRow

Unit = Sequence[TokenRow]


def cut_forest(
    units: Sequence[Unit], token_budget: int | None, shortest_shared: int = SHORTEST_SHARED
) -> list[list[int]]:
    """Units whose forests hold at most `token_budget` unique tokens.

    Units that share prefixes stay together, as trees; the trees are packed first-fit decreasing. A
    tree larger than the budget is cut between units, along its branches, and each part computes its
    way from the root again. A unit larger than the budget is a pass of its own.

    Returns:
        Numbers of the units of each pass.
    """
    if token_budget is None:
        return [list(range(len(units)))]
    ordered = sort_rows([row.tokens() for unit in units for row in unit], shortest_shared)
    rank = iter(ordered.rank)
    ranks = [[next(rank) for _ in unit] for unit in units]
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


def cut_blocks(
    units: Sequence[Unit], token_budget: int | None, shortest_shared: int = SHORTEST_SHARED
) -> list[list[int]]:
    """As `cut_forest`, for forests whose last tile is filled up with padding.

    Returns:
        Numbers of the units of each pass.
    """
    if token_budget is not None and token_budget > BLOCK:
        token_budget -= token_budget % BLOCK
    return cut_forest(units, token_budget, shortest_shared)


def cut_padded(units: Sequence[Unit], token_budget: int | None) -> list[list[int]]:
    """Units of similar lengths whose padded rows hold at most `token_budget` slots.

    Returns:
        Numbers of the units of each pass; a unit longer than the budget is a pass of its own.
    """
    if token_budget is None:
        return [list(range(len(units)))]
    width = [max(len(row) for row in unit) for unit in units]
    passes: list[list[int]] = []
    rows = 0
    for unit in sorted(range(len(units)), key=lambda u: -width[u]):
        # The first unit of a pass has its longest row.
        if passes and (rows + len(units[unit])) * width[passes[-1][0]] <= token_budget:
            passes[-1].append(unit)
            rows += len(units[unit])
        else:
            passes.append([unit])
            rows = len(units[unit])
    return passes


def unique_tokens(rows: Sequence[TokenRow], shortest_shared: int = SHORTEST_SHARED) -> int:
    """Tokens of the forest of these rows."""
    ordered = sort_rows([row.tokens() for row in rows], shortest_shared)
    return sum(len(row) for row in ordered.rows) - int(ordered.common.sum())


def _trees(ordered: SortedRows, ranks: Sequence[Sequence[int]]) -> list[list[int]]:
    """Units that are connected by shared prefixes."""
    root = (ordered.common == 0).cumsum().tolist()
    # Union-find over roots: a unit whose rows share nothing connects several of them.
    leader = list(range(len(root) + 1))

    def find(tree: int) -> int:
        while leader[tree] != tree:
            leader[tree] = leader[leader[tree]]
            tree = leader[tree]
        return tree

    for of_unit in ranks:
        for first, second in pairwise(of_unit):
            leader[find(root[first])] = find(root[second])
    trees: dict[int, list[int]] = {}
    for unit, of_unit in enumerate(ranks):
        trees.setdefault(find(root[of_unit[0]]), []).append(unit)
    return list(trees.values())


def _cut(
    ordered: SortedRows, ranks: Sequence[Sequence[int]], tree: Sequence[int], token_budget: int
) -> list[tuple[int, list[int]]]:
    """The tree's units in runs of at most `token_budget` unique tokens: (size, units)."""
    pieces: list[tuple[int, list[int]]] = []
    size, units, members = 0, list[int](), list[int]()
    for unit in sorted(tree, key=lambda u: sorted(ranks[u])):
        added = _add(ordered, members, ranks[unit])
        if units and size + added > token_budget:
            pieces.append((size, units))
            size, units, members = 0, [], []
            added = _add(ordered, members, ranks[unit])
        size += added
        units.append(unit)
    return [*pieces, (size, units)]


def _add(ordered: SortedRows, members: list[int], ranks: Sequence[int]) -> int:
    """Tokens that are new when a unit's rows join the sorted `members`, which it changes."""
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
