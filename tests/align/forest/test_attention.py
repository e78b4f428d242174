"""Attention over chains is dense attention under a mask of ancestors; the rest is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import align.forest.varlen
from align.forest.attention import (
    UnsupportedAttention,
    attending,
    tree_attention,
    tree_varlen_attention,
)
from align.forest.chains import GatheredChains, SegmentedChains
from align.forest.radix import Forest, grow

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
FUNCTIONS: dict[str, Any] = {"tree": tree_attention, "tree_varlen": tree_varlen_attention}
CHAINS: dict[str, Any] = {"tree": SegmentedChains, "tree_varlen": GatheredChains}
BACKENDS = tuple(FUNCTIONS)
LAYER = nn.Identity()


@pytest.fixture(scope="module")
def forest() -> Forest:
    """Two trees with branches at several depths, and rows that end inside another."""
    source = random.Random(0)
    trunk, other = ([source.randrange(50) for _ in range(n)] for n in (14, 6))
    rows = [
        trunk,
        [*trunk[:9], 90, 91, 92],
        [*trunk[:9], 90, 93],
        [*trunk[:4], 94, 95, 96, 97, 98],
        trunk[:6],
        [60, *other],
        [60, *other[:3], 99],
    ]
    return grow([np.array(row, np.int32) for row in rows], shortest_shared=1)


@pytest.fixture(scope="module")
def ancestors(forest: Forest) -> Tensor:
    """[T, T] True where the key is the query or an ancestor of it."""
    seen = torch.zeros(len(forest.ids), len(forest.ids), dtype=torch.bool)
    for query in range(len(forest.ids)):
        key = query
        while key >= 0:
            seen[query, key] = True
            key = int(forest.parent[key])
    return seen


def inputs(forest: Forest, key_heads: int = KEY_HEADS, value_width: int = WIDTH) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = ((HEADS, WIDTH), (key_heads, WIDTH), (key_heads, value_width))
    return [
        torch.randn(1, heads, len(forest.ids), width, generator=source).double().requires_grad_()
        for heads, width in shapes
    ]


@pytest.mark.usefixtures("slow_varlen")
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 3, 9, 14, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(
    backend: str, key_heads: int, window: int | None, scaling: float | None, forest, ancestors
) -> None:
    tensors = inputs(forest, key_heads)
    q, k, v = tensors
    position = torch.from_numpy(forest.position)
    far = position[:, None] - position[None, :] >= (window or 10**6)
    expected = scaled_dot_product_attention(
        q, k, v, attn_mask=ancestors & ~far, scale=scaling, enable_gqa=True
    ).transpose(1, 2)
    found, weights = FUNCTIONS[backend](
        LAYER,
        q,
        k,
        v,
        None,
        scaling=scaling,
        sliding_window=window,
        tree=CHAINS[backend].of(forest),
    )
    assert weights is None
    assert found.shape == (1, len(forest.ids), HEADS, WIDTH)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = zip(
        torch.autograd.grad(found, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    )
    for gradient, its in pairs:
        assert torch.allclose(gradient, its, atol=1e-12, rtol=0)


def test_values_of_another_width_than_keys(forest, ancestors) -> None:
    q, k, v = inputs(forest, value_width=5)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=ancestors, enable_gqa=True)
    found, _ = tree_attention(LAYER, q, k, v, None, tree=SegmentedChains.of(forest))
    assert found.shape == (1, len(forest.ids), HEADS, 5)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-12, rtol=0)


def test_dropout_of_tree(forest: Forest) -> None:
    """A root sees one key, so it keeps that key's value twofold or not at all."""
    q, k, _ = inputs(forest)
    v = torch.ones_like(k)
    chains = SegmentedChains.of(forest)
    torch.manual_seed(0)
    roots = [
        tree_attention(LAYER, q, k, v, None, dropout=0.5, tree=chains)[0][0, 0, 0, 0].item()
        for _ in range(30)
    ]
    assert set(roots) == {0.0, 2.0}


def refused(forest: Forest, backend: str, match: str, module: nn.Module = LAYER, **asked: Any):
    q, k, v = asked.pop("qkv", None) or inputs(forest)
    chains = asked.pop("tree", CHAINS[backend].of(forest))
    mask = asked.pop("mask", None)
    with pytest.raises(UnsupportedAttention, match=match):
        FUNCTIONS[backend](module, q, k, v, mask, tree=chains, **asked)


@pytest.mark.usefixtures("slow_varlen")
@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend: str, forest) -> None:
    size = len(forest.ids)
    other = next(name for name in BACKENDS if name != backend)
    without = f"attention `{backend}` was called without its chains"
    refused(forest, backend, without, tree=None)
    refused(forest, backend, without, tree=CHAINS[other].of(forest))
    twice = [tensor.repeat(2, 1, 1, 1) for tensor in inputs(forest)]
    refused(forest, backend, "a batch of 2 rows", qkv=twice)
    mask = torch.ones(1, 1, size, size, dtype=torch.bool)
    refused(forest, backend, "an attention mask of its own", mask=mask)
    refused(forest, backend, "not causal", is_causal=False)
    encoder = nn.Identity()
    encoder.is_causal = False  # type: ignore[assignment]
    refused(forest, backend, "not causal", module=encoder)


@pytest.mark.usefixtures("slow_varlen")
@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "cache", "head_mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_changes_attention_is_refused_by_name(backend: str, name: str, forest) -> None:
    refused(forest, backend, f"attention with {name}", **{name: torch.ones(4)})
    q, k, v = inputs(forest)
    chains = CHAINS[backend].of(forest)
    expected, _ = FUNCTIONS[backend](LAYER, q, k, v, None, tree=chains)
    harmless = {name: None, "is_causal": True, "position_ids": torch.ones(1), "use_cache": False}
    found, _ = FUNCTIONS[backend](LAYER, q, k, v, None, tree=chains, **harmless)
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("slow_varlen")
def test_varlen_refuses_dropout(forest: Forest) -> None:
    refused(forest, "tree_varlen", "dropout in attention", dropout=0.1)


def test_varlen_needs_its_kernel(forest: Forest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align.forest.varlen, "KERNEL", None)
    refused(forest, "tree_varlen", "needs torch 2.10")


@pytest.mark.usefixtures("slow_varlen")
@pytest.mark.parametrize(
    ("width", "value_width", "match"),
    [
        (264, 264, "no heads of size 264: multiples of 8 up to 256"),
        (12, 12, "no heads of size 12"),
        (WIDTH, 16, r"values as wide as keys \(16 and 8\)"),
    ],
)
def test_varlen_refuses_heads_that_its_kernel_has_not(
    width: int, value_width: int, match: str, forest: Forest
) -> None:
    q, k, _ = (torch.randn(1, heads, len(forest.ids), width) for heads in (4, 2, 2))
    v = torch.randn(1, 2, len(forest.ids), value_width)
    refused(forest, "tree_varlen", match, qkv=(q, k, v))


@pytest.mark.usefixtures("slow_varlen")
def test_varlen_refuses_old_gpus(forest: Forest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align.forest.varlen, "capability", lambda device: (7, 5))
    refused(forest, "tree_varlen", r"needs a GPU of compute capability 8\.0 \(this is 7\.5\)")
    monkeypatch.setattr(align.forest.varlen, "capability", lambda device: (8, 0))
    tree_varlen_attention(LAYER, *inputs(forest), None, tree=GatheredChains.of(forest))


@pytest.mark.usefixtures("slow_varlen")
def test_varlen_refuses_heads_that_are_no_groups(forest: Forest) -> None:
    q, k, v = inputs(forest, key_heads=3)
    refused(forest, "tree_varlen", "cannot share 3 heads of keys among 4", qkv=(q, k, v))


@pytest.mark.usefixtures("strict_varlen")
def test_varlen_refuses_what_is_not_16_bits_wide(forest: Forest) -> None:
    q, k, v = (tensor.detach().float() for tensor in inputs(forest))
    refused(forest, "tree_varlen", "does not compute in float32", qkv=(q, k, v))


@pytest.mark.usefixtures("strict_varlen")
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_varlen_under_autocast(narrow: torch.dtype, forest: Forest) -> None:
    """Queries and keys come in float32 from the rotary embedding, values from a matrix product."""
    q, k, v = (tensor.detach().float().requires_grad_() for tensor in inputs(forest))
    chains = GatheredChains.of(forest)
    with torch.autocast("cpu", narrow):
        found, _ = tree_varlen_attention(LAYER, q, k, v.to(narrow), None, tree=chains)
    assert found.dtype == torch.float32
    rounded = [tensor.detach().to(narrow) for tensor in (q, k, v)]
    expected, _ = tree_varlen_attention(LAYER, *rounded, None, tree=chains)
    assert expected.dtype == narrow
    # Nothing is rounded but the inputs and the output.
    assert torch.equal(found, expected.float())
    for gradient in torch.autograd.grad(found.square().sum(), (q, k, v)):
        assert gradient.dtype == torch.float32
        assert gradient.abs().sum() > 0


@pytest.mark.usefixtures("strict_varlen")
@pytest.mark.parametrize("name", ["tied", "a window"])
def test_a_model_under_autocast_attends_by_varlen(name: str, forest: Forest) -> None:
    """The model's own attention under autocast gives the same, to the rounding of 16 bits."""
    shape: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model: Any = (
        MistralForCausalLM(MistralConfig(**shape, sliding_window=5))
        if name == "a window"
        else LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    )
    ids = torch.from_numpy(forest.ids)[None]
    places = torch.from_numpy(forest.position)[None]
    states = {}
    for kind, chains in (("tree", SegmentedChains), ("tree_varlen", GatheredChains)):
        with torch.autocast("cpu", torch.bfloat16), attending(model, kind), torch.no_grad():
            output = model.model(
                input_ids=ids, position_ids=places, use_cache=False, tree=chains.of(forest)
            )
        states[kind] = output.last_hidden_state
    gap = (states["tree"] - states["tree_varlen"]).square().mean().sqrt()
    assert float(gap / states["tree"].square().mean().sqrt()) < 0.01


@pytest.fixture(scope="module")
def model() -> Any:
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model: Any = LlamaForCausalLM(config)
    # A second model inside, with a config of its own, such as a vision tower.
    model.tower = LlamaForCausalLM(LlamaConfig(**config.to_dict()))
    model.tower.config._attn_implementation = "eager"
    return model


def test_attending_changes_every_config_and_changes_it_back(model: Any) -> None:
    def names() -> tuple[str, str]:
        return model.config._attn_implementation, model.tower.config._attn_implementation

    assert names() == ("sdpa", "eager")
    with attending(model, "tree"):
        assert names() == ("tree", "tree")
        with attending(model, "tree_varlen"):
            assert names() == ("tree_varlen", "tree_varlen")
        assert names() == ("tree", "tree")
        with attending(model, None):
            assert names() == ("tree", "tree")
    assert names() == ("sdpa", "eager")
    with pytest.raises(KeyError), attending(model, "tree"):
        raise KeyError
    assert names() == ("sdpa", "eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_calls_the_function_of_that_name(
    backend: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert AttentionInterface()[backend] is FUNCTIONS[backend]
    masks = []

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any):
        masks.append(mask)
        return query.transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, backend, spy)
    ids = torch.tensor([[1, 2, 3, 2, 3]])
    with attending(model, backend):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 1, 2]]), use_cache=False)
    # Transformers builds no mask for a name that it does not know.
    assert masks == [None]


def test_a_model_told_to_attend_by_tree_does_not_run_without_chains(model: Any) -> None:
    with attending(model, "tree"), pytest.raises(UnsupportedAttention, match="without its chains"):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
