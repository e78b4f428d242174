"""A pack gives every row its own tokens' values, and a shared edge the sum of the gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.forest import TokenRow
from align.forest.pack import Pack, padded_pack, tree_flex_pack, tree_pack, tree_varlen_pack

LAYOUTS: dict[str, Callable[[Sequence[TokenRow]], Pack]] = {
    "padded": padded_pack,
    "tree": tree_pack,
    "tree, all shared": partial(tree_pack, shortest_shared=1),
    "tree_varlen": tree_varlen_pack,
    "tree_varlen, all shared": partial(tree_varlen_pack, shortest_shared=1),
    "tree_flex": tree_flex_pack,
}
SHARED = tuple(name for name in LAYOUTS if "all shared" in name)
TOKENS = st.lists(st.sampled_from([1, 2]), max_size=6)
ROWS = st.lists(
    st.builds(TokenRow, TOKENS, TOKENS).filter(len),
    min_size=1,
    max_size=8,
)
thorough = settings(max_examples=80, deadline=None)


def way_to(pack: Pack, slot: int) -> list[int]:
    """Tokens that the model reads up to this slot, in order."""
    width = pack.input_ids.shape[1]
    row, column = divmod(slot, width)
    if pack.position_ids is None:
        return pack.input_ids[row, : column + 1].tolist()
    ids, position = pack.input_ids[0].tolist(), pack.position_ids[0].tolist()
    # Depth-first, so the token before one at depth n is the last before it at depth n - 1.
    way = [column]
    while position[way[0]] > 0:
        depth = position[way[0]] - 1
        way.insert(0, next(i for i in range(way[0] - 1, -1, -1) if position[i] == depth))
    return [ids[i] for i in way]


@pytest.mark.parametrize("layout", LAYOUTS)
@thorough
@given(rows=ROWS)
def test_an_edge_is_a_token_after_its_whole_prefix(layout: str, rows: list[TokenRow]) -> None:
    pack = LAYOUTS[layout](rows)
    predictor, target = pack.predictor.tolist(), pack.target.tolist()
    assert len(predictor) == len(target)
    used = set()
    for r, row in enumerate(rows):
        tokens = row.tokens().tolist()
        scored = range(max(len(row.prompt_ids), 1), len(tokens))
        assert pack.lengths[r] == len(scored)
        assert pack.mask[r].tolist() == [s < len(scored) for s in range(pack.mask.shape[1])]
        for edge, t in zip(pack.index[r].tolist(), scored, strict=False):
            assert target[edge] == tokens[t]
            assert way_to(pack, predictor[edge]) == tokens[:t]
            used.add(edge)
    # No edge is scored for nobody.
    assert used == set(range(len(predictor)))
    assert pack.row_tokens == sum(map(len, rows))


@pytest.mark.parametrize("layout", SHARED)
@thorough
@given(rows=ROWS)
def test_no_edge_is_scored_twice(layout: str, rows: list[TokenRow]) -> None:
    wanted = {
        tuple(row.tokens()[: t + 1].tolist())
        for row in rows
        for t in range(max(len(row.prompt_ids), 1), len(row))
    }
    assert len(LAYOUTS[layout](rows).target) == len(wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@thorough
@given(rows=ROWS, borders=st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_values_and_gradients_of_rows(
    layout: str, rows: list[TokenRow], borders: tuple[int, int]
) -> None:
    pack = LAYOUTS[layout](rows)
    start, stop = sorted(min(border, len(rows)) for border in borders)
    edge = torch.arange(1.0, len(pack.target) + 1).double().requires_grad_()
    found = pack.rows(start, stop, edge)
    width = max(pack.lengths[start:stop], default=0)
    assert found.token.shape == found.mask.shape == (stop - start, width)
    credit: Counter[int] = Counter()
    for r in range(start, stop):
        n = pack.lengths[r]
        edges = pack.index[r, :n].tolist()
        assert found.token[r - start].tolist() == [e + 1 for e in edges] + [0] * (width - n)
        assert found.mask[r - start].tolist() == [True] * n + [False] * (width - n)
        for s, e in enumerate(edges):
            credit[e] += 10 * (r - start) + s + 1
    # A weight of its own for every slot; those beside a row must not reach any edge.
    weight = 10 * torch.arange(stop - start)[:, None] + torch.arange(width)[None] + 1
    (found.token * weight).sum().backward()
    assert edge.grad is not None
    assert edge.grad.tolist() == [credit[e] for e in range(len(edge))]


@pytest.mark.parametrize("layout", LAYOUTS)
@thorough
@given(rows=ROWS)
def test_multiplicity_counts_the_rows_of_a_slot(layout: str, rows: list[TokenRow]) -> None:
    pack = LAYOUTS[layout](rows)
    assert pack.multiplicity.dtype == torch.float32
    assert pack.multiplicity.shape == pack.input_ids.shape
    assert pack.multiplicity.sum().item() == pack.row_tokens
    counted: Counter[tuple[int, ...]] = Counter()
    for slot, times in enumerate(pack.multiplicity.flatten().tolist()):
        if times:
            counted[tuple(way_to(pack, slot))] += int(times)
    expected = Counter(
        tuple(row.tokens()[: t + 1].tolist()) for row in rows for t in range(len(row))
    )
    assert counted == expected


def test_garbage_beside_a_row_and_in_edge_zero_stays_there() -> None:
    pack = padded_pack([TokenRow([1], [2]), TokenRow([1], [3, 4, 5])])
    edge = torch.tensor([float("nan"), -1.0, -2.0, -3.0], requires_grad=True)
    found = pack.rows(0, 2, edge)
    assert found.token[1].tolist() == [-1, -2, -3]
    assert found.token[0, 1:].tolist() == [0, 0]
    found.token[1].sum().backward()
    assert edge.grad is not None
    assert edge.grad.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("layout", SHARED)
def test_by_hand(layout: str) -> None:
    """[1 2 | 3 4] and [1 2 | 3 5], a step on from the first, and one without a prompt."""
    rows = [TokenRow([1, 2], [3, 4]), TokenRow([1, 2], [3, 5]), TokenRow([1, 2, 3, 4], [6])]
    pack = LAYOUTS[layout]([*rows, TokenRow([], [1, 2, 3])])
    assert pack.input_ids.tolist() == [[1, 2, 3, 4, 6, 5]]
    assert pack.position_ids is not None
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert pack.attention_mask is None
    assert pack.implementation == layout.split(",")[0]
    # Only the row without a prompt scores the 2, and nobody the first token.
    assert pack.target.tolist() == [2, 3, 4, 6, 5]
    assert pack.predictor.tolist() == [0, 1, 2, 3, 2]
    assert pack.index.tolist() == [[1, 2], [1, 4], [3, 0], [0, 1]]
    assert pack.mask.tolist() == [[True, True], [True, True], [True, False], [True, True]]
    assert pack.multiplicity.tolist() == [[4, 4, 4, 2, 1, 1]]
    assert pack.lengths == (2, 2, 1, 2)
    assert pack.row_tokens == 4 + 4 + 5 + 3
    assert pack.computed_tokens == 6


def test_padded_by_hand() -> None:
    pack = padded_pack([TokenRow([1, 2], [3]), TokenRow([], [4, 5, 6, 7]), TokenRow([8], [])])
    assert pack.input_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7], [8, 0, 0, 0]]
    assert pack.attention_mask is not None
    assert pack.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert pack.position_ids is None
    assert pack.implementation is None
    assert pack.predictor.tolist() == [1, 4, 5, 6]
    assert pack.target.tolist() == [3, 5, 6, 7]
    assert pack.lengths == (1, 3, 0)
    assert pack.computed_tokens == 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_without_a_scored_token(layout: str) -> None:
    pack = LAYOUTS[layout]([TokenRow([], [5]), TokenRow([5, 6], [])])
    assert pack.lengths == (0, 0)
    assert pack.target.tolist() == []
    edge = torch.zeros(0, requires_grad=True)
    assert pack.rows(0, 2, edge).token.shape == (2, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_to_another_device(layout: str) -> None:
    pack = LAYOUTS[layout]([TokenRow([1, 2], [3, 4]), TokenRow([1, 2], [5])])
    moved = pack.to("meta")
    for name, value in vars(pack).items():
        other = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert (other.device.type, other.shape) == ("meta", value.shape), name
        elif name != "tree":
            assert other == value, name
    assert moved.implementation == pack.implementation
    if layout.startswith("tree_varlen"):
        assert moved.tree.gather.device.type == "meta"
    assert pack.input_ids.device.type == "cpu"
