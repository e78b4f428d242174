"""FlashAttention is called by the arguments that each version of torch takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align.forest.chains import GatheredChains
from align.forest.radix import grow
from align.forest.refusal import UnsupportedAttention
from align.forest.varlen import VarlenKernel

# The parameters of `torch.nn.attention.varlen.varlen_attn`, version by version.


def torch_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    return locals()


def torch_2_11(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    return locals()


def torch_2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    return locals()


def torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    return locals()


VERSIONS: tuple[Callable[..., Any], ...] = (torch_2_10, torch_2_11, torch_2_12, torch_2_13)


def emulated(version: Callable[..., Any], by_loop: Callable[..., Tensor]) -> VarlenKernel:
    """A kernel with a version's parameters that computes what that version says it does."""

    def function(*args: Any, **named: Any) -> Tensor:
        told = version(*args, **named)
        window = told.get("window_size")
        if window is None:
            window = (-1, 0) if told["is_causal"] else (-1, -1)
        q, k = told["query"], told["key"]
        if "enable_gqa" in told:
            assert told["enable_gqa"] == (q.shape[1] != k.shape[1])
        return by_loop(
            q,
            k,
            told["value"],
            told["cu_seq_q"],
            told["cu_seq_k"],
            told["max_q"],
            told["max_k"],
            scale=told.get("scale"),
            window_size=window,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    parameters = frozenset(inspect.signature(version).parameters)
    return VarlenKernel(function, parameters, dtypes=(torch.float64,))


@pytest.fixture(scope="module")
def chains() -> GatheredChains:
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8], [1, 2, 9], [10, 11]]
    return GatheredChains.of(grow([np.array(row, np.int32) for row in rows], shortest_shared=1))


def inputs(chains: GatheredChains, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    size = int(chains.query_borders[-1])
    query = torch.randn(size, 4, 16, generator=source).double()
    key, value = (torch.randn(size, key_heads, 16, generator=source).double() for _ in range(2))
    return query, key[chains.gather], value[chains.gather]


def by_hand(
    chains: GatheredChains, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
) -> Tensor:
    """One query at a time: softmax over the last keys that it may see."""
    outputs = []
    for c in range(len(chains.query_borders) - 1):
        (q0, q1), (k0, k1) = (
            (int(b[c]), int(b[c + 1])) for b in (chains.query_borders, chains.key_borders)
        )
        for at in range(q0, q1):
            last = k1 - (q1 - at) + 1
            seen = slice(max(k0, last - window), last)
            heads = []
            for head in range(query.shape[1]):
                shared = head * key.shape[1] // query.shape[1]
                weights = (key[seen, shared] @ query[at, head] * scale).softmax(0)
                heads.append(weights @ value[seen, shared])
            outputs.append(torch.stack(heads))
    return torch.stack(outputs)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_signature(
    version: Callable[..., Any],
    key_heads: int,
    scale: float | None,
    window: int | None,
    chains: GatheredChains,
    by_loop: Callable[..., Tensor],
) -> None:
    kernel = emulated(version, by_loop)
    query, key, value = inputs(chains, key_heads)
    if version is torch_2_10 and window is not None:
        with pytest.raises(UnsupportedAttention, match="no sliding window"):
            kernel.attend(query, key, value, chains, scale=scale, window=window)
        return
    found = kernel.attend(query, key, value, chains, scale=scale, window=window)
    # 16^-0.5 = 0.25 is the factor of heads of size 16.
    expected = by_hand(chains, query, key, value, scale or 0.25, window or 1000)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)


def test_the_installed_signature_is_the_last_one() -> None:
    from torch.nn.attention.varlen import varlen_attn

    def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    if not torch.__version__.startswith("2.13"):
        pytest.skip(f"torch {torch.__version__} is installed")
    assert shape(varlen_attn) == shape(torch_2_13)
