"""Attention of one layer, forward and backward, by each way to compute it, at growing packs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from bench_turns import meter_of
from gpu_kernels import WAYS
from gpu_stand import Setting, synchronise, text_of
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from align.forest.blocks import BlockedForest, ends_of
from align.forest.packing import unique_tokens
from align.forest.radix import Forest, grow

# Heads, heads of keys, width of a head.
SHAPES = {"qwen2.5-0.5b": (14, 2, 64), "llama-3.2-1b": (32, 8, 64), "llama-3.1-8b": (32, 8, 128)}
TOKENS = (4096, 8192, 16384, 32768)
# A dense matrix of more is gigabytes.
DENSE_UP_TO = 16384


def measure(setting: Setting) -> dict[str, Any]:
    found = setting.table()
    for data in ("hh",) if setting.tiny else ("hh", "tree"):
        for tokens in (512,) if setting.tiny else TOKENS:
            forest = _forest(setting, data, tokens)
            for name, shape in {"tiny": (4, 2, 16)}.items() if setting.tiny else SHAPES.items():
                for way in ("tree_varlen", "tree_flex", "dense"):
                    row = {"data": data, "tokens": len(forest.ids), "shape": name, "way": way}
                    try:
                        row |= _timed(forest, shape, way, setting)
                    except Exception as error:
                        row["why"] = text_of(error)
                    found.append(row)
    return {"layer": found}


def _forest(setting: Setting, data: str, tokens: int) -> Forest:
    """Of whole pairs, as many as fit."""
    pool = setting.rows(data, max(4, tokens // 200), 32_000)
    half = len(pool) // 2
    count = half
    while count > 1 and unique_tokens([*pool[:count], *pool[half : half + count]]) > tokens:
        count = count * 9 // 10
    return grow([row.tokens() for row in [*pool[:count], *pool[half : half + count]]])


def _timed(
    forest: Forest, shape: tuple[int, int, int], way: str, setting: Setting
) -> dict[str, Any]:
    device, meter = setting.device, meter_of(setting.device)
    if way == "dense" and len(forest.ids) > DENSE_UP_TO:
        return {"why": f"not tried above {DENSE_UP_TO} tokens"}
    began = time.perf_counter()
    attend, slots = _way(forest, way, device)
    synchronise(device)
    layout = time.perf_counter() - began
    heads, key_heads, width = shape
    # FlexAttention has no backward pass on a CPU.
    is_trained = (way, device) != ("tree_flex", "cpu")
    tensors = [
        torch.randn(
            1, n, slots, width, device=device, dtype=setting.dtype, requires_grad=is_trained
        )
        for n in (heads, key_heads, key_heads)
    ]

    def once() -> None:
        output = attend(*tensors)
        if is_trained:
            output.sum().backward()

    began = time.perf_counter()
    once()
    synchronise(device)
    first = time.perf_counter() - began
    times, peak = [], 0
    for turn in range(2 if setting.tiny else 13):
        meter.begin()
        once()
        seconds, _, taken = meter.end()
        if setting.tiny or turn >= 3:
            times.append(seconds)
            peak = max(peak, taken or 0)
    return {
        "ms": 1000 * median(times),
        "peak_mib": peak / 2**20,
        "layout_ms": 1000 * layout,
        "first_seconds": first,
    }


def _way(forest: Forest, way: str, device: str) -> tuple[Callable[..., Tensor], int]:
    """What attends, and how many slots there are."""
    size = len(forest.ids)
    if way == "dense":
        place = torch.arange(size, device=device)
        end = torch.from_numpy(ends_of(forest)).to(device)
        seen = (place[None] <= place[:, None]) & (place[:, None] < end[None])

        def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            groups = query.shape[1] // key.shape[1]
            key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
            return scaled_dot_product_attention(query, key, value, attn_mask=seen)

        return dense, size
    attend, layout = WAYS[way]
    tree = layout.of(forest).to(device)
    if isinstance(tree, BlockedForest):
        tree.mask(None)
        size = len(tree.end)
    layer = nn.Identity()
    return lambda q, k, v: attend(layer, q, k, v, None, tree=tree)[0], size
