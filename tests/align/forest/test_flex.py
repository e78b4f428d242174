"""FlexAttention over a forest is dense attention under its rule, and its tiles are torch's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from align.forest import TokenRow
from align.forest.blocks import BLOCK, BlockedForest, ends_of
from align.forest.flex import tree_flex_attention
from align.forest.pack import tree_flex_pack, tree_pack
from align.forest.packing import cut_blocks, cut_forest, unique_tokens
from align.forest.radix import Forest, grow
from align.forest.refusal import UnsupportedAttention

LAYER = nn.Identity()
# What torch says of every call that is not compiled.
eager = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def some_forest(seed: int, trees: int, longest: int) -> Forest:
    """Trees with branches at several depths; stretches end within tiles and at their borders."""
    source = random.Random(seed)

    def text(n: int) -> list[int]:
        return [source.randrange(1, 5000) for _ in range(n)]

    rows: list[list[int]] = []
    for _ in range(trees):
        ways = [text(source.choice([5, BLOCK, longest]))]
        for _ in range(source.randrange(1, 6)):
            way = source.choice(ways)
            cut = source.choice([len(way), len(way) // 2])
            ways.append(way[:cut] + text(source.choice([1, 40, BLOCK, longest // 2])))
        rows += ways
    return grow([np.array(row, np.int32) for row in rows], shortest_shared=1)


def rule(forest: Forest, window: int | None) -> Tensor:
    """[S, S] who sees whom, by walking from each token to its root; padding sees itself."""
    slots = -(-len(forest.ids) // BLOCK) * BLOCK
    seen = np.eye(slots, dtype=bool)
    ways: list[list[int]] = []
    for query, parent in enumerate(forest.parent.tolist()):
        ways.append([*(ways[parent] if parent >= 0 else []), query])
        seen[query, ways[query][-(window or slots) :]] = True
    return torch.from_numpy(seen)


@pytest.mark.parametrize("window", [None, 1, 60, 300, 10**6])
@pytest.mark.parametrize("seed", [0, 1])
def test_tiles_are_those_that_torch_finds(seed: int, window: int | None) -> None:
    forest = some_forest(seed, trees=4, longest=700)
    blocked = BlockedForest.of(forest)
    size = len(blocked.end)
    assert 1500 < size < 6000
    mask = blocked.mask(window)
    expected = create_block_mask(mask.mask_mod, None, None, size, size, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(mask, f"{name}_num_blocks")
        assert torch.equal(counts, getattr(expected, f"{name}_num_blocks")), name
        found, wanted = (getattr(one, f"{name}_indices") for one in (mask, expected))
        for row, count in enumerate(counts.flatten().tolist()):
            assert torch.equal(found[0, 0, row, :count], wanted[0, 0, row, :count]), (name, row)
    assert mask.shape == expected.shape
    assert mask.BLOCK_SIZE == expected.BLOCK_SIZE == (BLOCK, BLOCK)
    if window is None or window > 1000:
        assert mask.full_kv_num_blocks.sum() > 5
    # Not every tile below the diagonal is looked at.
    looked_at = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert looked_at < (size // BLOCK) * (size // BLOCK + 1) / 2


@pytest.mark.parametrize("window", [None, 3, 200])
def test_the_rule_is_a_walk_to_the_root(window: int | None) -> None:
    forest = some_forest(3, trees=2, longest=200)
    blocked = BlockedForest.of(forest)
    place = torch.arange(len(blocked.end))
    found = blocked.mask(window).mask_mod(place, place, place[:, None], place[None])
    assert torch.equal(found, rule(forest, window))
    assert blocked.mask(window) is blocked.mask(window)


def test_ends_by_hand() -> None:
    """0-1 is the trunk, 2 a fork with 3-4 and 5 below it, 6 the other branch, 7 a root."""
    rows = [[1, 2, 3], [1, 2, 4, 5, 6], [1, 2, 4, 7], [9]]
    forest = grow([np.array(row, np.int32) for row in rows], shortest_shared=1)
    assert ends_of(forest).tolist() == [7, 7, 6, 5, 5, 6, 7, 8]


def inputs(size: int, key_heads: int, value_width: int = 8) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = ((4, 8), (key_heads, 8), (key_heads, value_width))
    return [
        (2 * torch.randn(1, heads, size, width, generator=source).double()).requires_grad_()
        for heads, width in shapes
    ]


def dense(
    tensors: list[Tensor],
    seen: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """[1, S, H, D_v] by the whole matrix; a sink is one more column that is then dropped."""
    q, k, v = tensors
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT * (8**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=3).softmax(dim=3)[..., :-1]
    else:
        weights = scores.softmax(dim=3)
    return (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2)


ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.7},
    "a window": {"sliding_window": 50},
    "soft-capped": {"softcap": 1.5},
    "sinks": {"s_aux": True},
    "all of it": {"scaling": 0.3, "sliding_window": 130, "softcap": 2.0, "s_aux": True},
}


def both(
    asked: dict[str, Any], key_heads: int, value_width: int = 8, *, is_trained: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """By the forest and by the dense matrix, and what both were computed from."""
    forest = some_forest(2, trees=2, longest=100)
    blocked = BlockedForest.of(forest)
    assert 384 <= len(blocked.end) <= 640
    tensors = inputs(len(blocked.end), key_heads, value_width)
    if not is_trained:
        tensors = [tensor.detach() for tensor in tensors]
    sinks = torch.tensor([-1.0, 0.5, 2.0, 0.0]).double().requires_grad_()
    told = asked | ({"s_aux": sinks} if "s_aux" in asked else {})
    expected = dense(
        tensors,
        rule(forest, asked.get("sliding_window")),
        asked.get("scaling"),
        asked.get("softcap"),
        told.get("s_aux"),
    )
    found, weights = tree_flex_attention(LAYER, *tensors, None, tree=blocked, **told)
    assert weights is None
    return found, expected, [*tensors, sinks] if "s_aux" in asked else tensors


@eager
@torch.no_grad()
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("name", ASKED)
def test_values_by_torchs_own_flex_attention(name: str, key_heads: int) -> None:
    found, expected, _ = both(ASKED[name], key_heads, is_trained=False)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("slow_flex")
@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("name", ASKED)
def test_gradients(name: str, key_heads: int) -> None:
    """Through a dense stand-in: FlexAttention has no backward pass on a CPU."""
    found, expected, tensors = both(ASKED[name], key_heads, value_width=5, is_trained=True)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = zip(
        torch.autograd.grad(found, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    )
    for gradient, its in pairs:
        assert its.abs().max() > 0.01
        assert torch.allclose(gradient, its, atol=1e-11, rtol=0)


@eager
@torch.no_grad()
def test_the_stand_in_is_flex_attention(by_matrix: Callable[..., Any]) -> None:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    blocked = BlockedForest.of(some_forest(5, trees=2, longest=150))
    tensors = [tensor.detach() for tensor in inputs(len(blocked.end), 2)]
    told: dict[str, Any] = {
        "block_mask": blocked.mask(70),
        "scale": 0.4,
        "enable_gqa": True,
        "score_mod": lambda score, b, h, q, k: torch.tanh(score),
        "return_aux": AuxRequest(lse=True),
    }
    found, expected = (call(*tensors, **told) for call in (by_matrix, flex_attention))
    assert torch.allclose(found[0], expected[0], atol=1e-12, rtol=0)
    assert torch.allclose(found[1].lse, expected[1].lse, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("slow_flex")
def test_under_autocast() -> None:
    blocked = BlockedForest.of(some_forest(2, trees=3, longest=150))
    q, k, v = (tensor.detach().float() for tensor in inputs(len(blocked.end), 2))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = tree_flex_attention(LAYER, q, k, v.bfloat16(), None, tree=blocked)
    assert found.dtype == torch.float32
    rounded = [tensor.bfloat16() for tensor in (q, k, v)]
    expected, _ = tree_flex_attention(LAYER, *rounded, None, tree=blocked)
    assert torch.equal(found, expected.float())


def refused(match: str, **asked: Any) -> None:
    blocked = BlockedForest.of(some_forest(2, trees=1, longest=50))
    tensors = asked.pop("qkv", None) or inputs(len(blocked.end), 2)
    with pytest.raises(UnsupportedAttention, match=match):
        tree_flex_attention(LAYER, *tensors, asked.pop("mask", None), tree=blocked, **asked)


@pytest.mark.usefixtures("slow_flex")
def test_refusals() -> None:
    refused("dropout in attention", dropout=0.1)
    refused("an attention mask of its own", mask=torch.ones(1))
    refused("not causal", is_causal=False)
    for name in ("position_bias", "cache", "head_mask"):
        refused(f"attention with {name}", **{name: torch.ones(1)})
    refused("cannot share 3 heads of keys among 4", qkv=inputs(128, 3))
    with pytest.raises(UnsupportedAttention, match="`tree_flex` was called without its tiles"):
        tree_flex_attention(LAYER, *inputs(128, 2), None)


def test_a_backward_pass_on_a_cpu_is_refused() -> None:
    refused("no backward pass on a CPU")


def test_a_compilation_that_fails_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def no_compiler(*_: Any, **__: Any) -> None:
        raise TorchDynamoException("Failed to find C compiler.\nSee below.")

    monkeypatch.setattr("align.forest.flex._kernel", lambda device: no_compiler)
    refused(r"could not compile here \(Failed to find C compiler.\)$")


def test_on_a_gpu_it_is_compiled_whole_and_often(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    from align.forest.flex import _kernel

    asked = {}

    def compiled(function: Any, **told: Any) -> Any:
        asked.update(told)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    settings: Any = torch._dynamo.config
    with settings.patch(recompile_limit=8):
        _kernel.__wrapped__("cuda")
        assert settings.recompile_limit == 64
    assert asked == {"dynamic": True, "fullgraph": True}


def test_another_failure_of_the_kernel_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate.")

    monkeypatch.setattr("align.forest.flex._kernel", lambda device: full)
    blocked = BlockedForest.of(some_forest(2, trees=1, longest=50))
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        tree_flex_attention(LAYER, *inputs(len(blocked.end), 2), None, tree=blocked)


def test_padding_fills_the_last_tile_and_counts() -> None:
    rows = [TokenRow(list(range(1, 61)), [70 + i, 71 + i, 3]) for i in range(25)]
    plain, filled = tree_pack(rows), tree_flex_pack(rows)
    size = plain.computed_tokens
    # A prompt of 60 and 25 completions of 3, none of which begin alike.
    assert size == 135
    assert filled.computed_tokens == 256
    assert torch.equal(filled.input_ids[:, :size], plain.input_ids)
    assert filled.position_ids is not None
    assert torch.equal(filled.position_ids[:, :size], plain.position_ids)  # type: ignore[arg-type]
    assert filled.multiplicity[0, :size].min() >= 1
    assert filled.multiplicity[0, size:].sum() == 0
    for name in ("predictor", "target", "index", "mask"):
        assert torch.equal(getattr(filled, name), getattr(plain, name))
    assert int(filled.predictor.max()) < size


def test_a_budget_counts_the_padding() -> None:
    """Units of 60 unique tokens: of 4 (240) only two (120) fit into whole tiles below 250."""
    units = [[TokenRow([100 * u + i for i in range(59)], [7])] for u in range(4)]
    assert [unique_tokens(unit) for unit in units] == [60] * 4
    assert [len(one) for one in cut_forest(units, 250)] == [4]
    passes = cut_blocks(units, 250)
    assert [len(one) for one in passes] == [2, 2]
    for one in passes:
        rows = [row for u in one for row in units[u]]
        assert tree_flex_pack(rows).computed_tokens <= 250
    # Less than a tile is not to be had.
    assert [len(one) for one in cut_blocks(units, 100)] == [1] * 4
    assert cut_blocks(units, None) == [[0, 1, 2, 3]]


def test_to_another_device() -> None:
    blocked = BlockedForest.of(some_forest(2, trees=1, longest=50))
    kept = blocked.mask(None)
    moved = blocked.to("meta")
    assert (moved.end.device.type, moved.position.device.type) == ("meta", "meta")
    assert moved.implementation == "tree_flex"
    assert moved.masks == {}
    assert blocked.masks == {None: kept}
