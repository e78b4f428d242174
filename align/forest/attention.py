"""Attention over a forest, as transformers' attention functions `tree` and `tree_varlen`.

Models look their function up by name on every call, so one keyword argument (`tree`) and a name are
all they need. The names are unknown to transformers' mask interface on purpose: it then builds no
mask, and what is visible is decided here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

import align.forest.varlen
from align.forest.chains import GatheredChains, SegmentedChains
from align.forest.gather import gathered
from align.forest.refusal import UnsupportedAttention, kernel_dtype, look_at


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree: SegmentedChains | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """One attention call per chain; for CPUs, where a call costs little.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D_v].
        attention_mask: must be None.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: probability.
        sliding_window: keys that a query sees at most, itself included.
        tree: the chains.
        asked: what else the model hands its attention.

    Returns:
        [1, T, H, D_v], and no weights.
    """
    if not isinstance(tree, SegmentedChains):
        raise UnsupportedAttention("attention `tree` was called without its chains")
    look_at(module, query, attention_mask, sliding_window, asked)
    groups = query.shape[1] // key.shape[1]
    # Split once: the gradient of one slice is a tensor as long as the whole.
    keys = key.split(tree.sizes, dim=2)
    values = value.split(tree.sizes, dim=2)
    queries = query.split([sum(tree.sizes[a:b]) for a, b in tree.queries], dim=2)
    outputs = []
    for q, (first, last), before in zip(queries, tree.queries, tree.keys, strict=True):
        seen = (*before, *range(first, last))
        k = _grouped([keys[i] for i in seen], groups)
        v = _grouped([values[i] for i in seen], groups)
        n, m = q.shape[2], k.shape[2]
        plain = n == m and (sliding_window is None or m <= sliding_window)
        output = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if plain else _lower_right(tree, n, m, sliding_window, q),
            is_causal=plain,
            dropout_p=dropout,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def tree_varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    tree: GatheredChains | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """One FlashAttention call on gathered keys and values; for CUDA.

    The gather's backward sums the gradient of a shared key over all chains that saw it. Arguments
    and result as in `tree_attention`.
    """
    if not isinstance(tree, GatheredChains):
        raise UnsupportedAttention("attention `tree_varlen` was called without its chains")
    look_at(module, query, attention_mask, sliding_window, asked)
    if dropout:
        raise UnsupportedAttention("dropout in attention")
    kernel = align.forest.varlen.KERNEL
    if kernel is None:
        raise UnsupportedAttention("`tree_varlen`, which needs torch 2.10 or later")
    dtype = kernel_dtype(value)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    output = kernel.attend(
        q.contiguous(),
        gathered(k, tree.gather, tree.readers),
        gathered(v, tree.gather, tree.readers),
        tree,
        scale=scaling,
        window=sliding_window,
    )
    return output[None].to(query.dtype), None


AttentionInterface.register("tree", tree_attention)
AttentionInterface.register("tree_varlen", tree_varlen_attention)


@contextmanager
def attending(model: nn.Module, implementation: str | None) -> Iterator[None]:
    """Every layer of `model` attends by `implementation` inside; None changes nothing.

    The backward pass of a checkpointed layer attends again, so it belongs inside as well.
    """
    if implementation is None:
        yield
        return
    configs: dict[int, Any] = {
        id(config): config
        for module in model.modules()
        if hasattr(config := getattr(module, "config", None), "_attn_implementation_internal")
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = implementation
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _grouped(pieces: list[Tensor], groups: int) -> Tensor:
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    return whole if groups == 1 else whole.repeat_interleave(groups, dim=1)


def _lower_right(
    tree: SegmentedChains, n: int, m: int, window: int | None, query: Tensor
) -> Tensor:
    """[n, m] 0 where query i sees key j: j <= i + (m - n), less what the window hides; else -inf.

    Made once for all layers, and as numbers: a mask of truth values would be turned into numbers by
    every call, which each layer would then keep for its backward pass.
    """
    key = (n, m, window, query.dtype, query.device)
    if key not in tree.masks:
        seen = torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)
        if window is not None:
            seen = seen.triu(m - n - window + 1)
        mask = torch.zeros(n, m, dtype=query.dtype, device=query.device)
        tree.masks[key] = mask.masked_fill_(~seen, float("-inf"))
    return tree.masks[key]
