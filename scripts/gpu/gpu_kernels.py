"""Both CUDA kernels against dense float64: output and gradients; and the gradient of the gather."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from gpu_stand import Setting, relative, synchronise, text_of
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from align.forest.attention import tree_attention, tree_varlen_attention
from align.forest.blocks import BlockedForest, ends_of
from align.forest.chains import GatheredChains, SegmentedChains
from align.forest.flex import tree_flex_attention
from align.forest.gather import Readers, gathered
from align.forest.radix import Forest, grow

WAYS: dict[str, tuple[Any, Any]] = {
    "tree": (tree_attention, SegmentedChains),
    "tree_varlen": (tree_varlen_attention, GatheredChains),
    "tree_flex": (tree_flex_attention, BlockedForest),
}
# (backend, heads, heads of keys, width, window); a backend's dtype is that of its use.
CASES = (
    ("tree", 8, 2, 64, None),
    ("tree_varlen", 8, 8, 64, None),
    ("tree_varlen", 14, 2, 64, None),
    ("tree_varlen", 32, 8, 128, None),
    ("tree_varlen", 32, 8, 128, 100),
    ("tree_varlen", 8, 2, 256, None),
    ("tree_flex", 14, 2, 64, None),
    ("tree_flex", 32, 8, 128, 100),
)


def measure(setting: Setting) -> dict[str, Any]:
    rows = setting.rows("hh", 2 if setting.tiny else 8, 32_000)
    rows += setting.rows("tree", 1, 32_000)
    forest = grow([row.tokens() for row in rows])
    found = setting.table()
    for case in CASES:
        for dtype in _dtypes(case[0], setting):
            row: dict[str, Any] = dict(
                zip(("backend", "heads", "key_heads", "width", "window"), case, strict=True)
            )
            row |= {"dtype": str(dtype).removeprefix("torch."), "tokens": len(forest.ids)}
            try:
                row |= _errors(forest, *case, dtype, setting.device)
            except Exception as error:
                row["why"] = text_of(error)
            found.append(row)
    return {"kernels": found, "gather": _gather(forest, setting)}


def _dtypes(backend: str, setting: Setting) -> tuple[torch.dtype, ...]:
    if setting.device == "cpu" or backend == "tree":
        return (torch.float32,)
    if backend == "tree_varlen":
        return torch.bfloat16, torch.float16
    return torch.bfloat16, torch.float32


def _errors(
    forest: Forest,
    backend: str,
    heads: int,
    key_heads: int,
    width: int,
    window: int | None,
    dtype: torch.dtype,
    device: str,
) -> dict[str, Any]:
    attend, layout = WAYS[backend]
    tree = layout.of(forest).to(device)
    size = len(forest.ids)
    slots = len(tree.end) if backend == "tree_flex" else size
    # FlexAttention has no backward pass on a CPU.
    is_trained = (backend, device) != ("tree_flex", "cpu")
    source = torch.Generator(device).manual_seed(0)
    narrow = [
        torch.randn(1, n, slots, width, generator=source, device=device).to(dtype)
        for n in (heads, key_heads, key_heads)
    ]
    narrow = [tensor.requires_grad_(is_trained) for tensor in narrow]
    wide = [tensor.detach().double()[:, :, :size].requires_grad_() for tensor in narrow]
    expected = _dense(wide, forest, window)
    began = time.perf_counter()
    found, _ = attend(nn.Identity(), *narrow, None, sliding_window=window, tree=tree)
    synchronise(device)
    row = {"output": relative(found[:, :size], expected)}
    if is_trained:
        upstream = torch.randn(expected.shape, generator=source, device=device).to(dtype)
        gradients = torch.autograd.grad(found[:, :size], narrow, upstream)
        synchronise(device)
        theirs = torch.autograd.grad(expected, wide, upstream.double())
        for name, gradient, its in zip("qkv", gradients, theirs, strict=True):
            row[f"gradient_{name}"] = relative(gradient[:, :, :size], its)
    # With its compilation, where it is compiled.
    return row | {"first_seconds": time.perf_counter() - began}


def _dense(tensors: list[Tensor], forest: Forest, window: int | None) -> Tensor:
    device = tensors[0].device
    place = torch.arange(len(forest.ids), device=device)
    end = torch.from_numpy(ends_of(forest)).to(device)
    position = torch.from_numpy(forest.position).to(device)
    seen = (place[None] <= place[:, None]) & (place[:, None] < end[None])
    if window is not None:
        seen &= position[:, None] - position[None] < window
    groups = tensors[0].shape[1] // tensors[1].shape[1]
    query, *others = tensors
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in others)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


def _gather(forest: Forest, setting: Setting) -> list[dict[str, Any]]:
    """Milliseconds of both gradients of one gather, in turns."""
    chains = GatheredChains.of(forest).to(setting.device)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.randn(len(forest.ids), 8, 128, device=setting.device, dtype=dtype)
        values.requires_grad_()
        upstream = torch.randn(len(chains.gather), 8, 128, device=setting.device, dtype=dtype)
        ways = (_indexed, gathered)
        times: list[list[float]] = [[], []]
        for turn in range(5 if setting.tiny else 23):
            for way in ((0, 1), (1, 0))[turn % 2]:
                taken = _seconds(ways[way], values, chains, upstream, setting.device)
                if turn >= 3:
                    times[way].append(taken)
        ratio = median(a / b for a, b in zip(*times, strict=True))
        found.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "values": len(forest.ids),
                "slots": len(chains.gather),
                "index_put_ms": 1000 * median(times[0]),
                "readers_ms": 1000 * median(times[1]),
                "ratio": ratio,
            }
        )
    return found


def _indexed(values: Tensor, places: Tensor, readers: Readers) -> Tensor:
    return values[places]


def _seconds(
    way: Callable[..., Tensor],
    values: Tensor,
    chains: GatheredChains,
    upstream: Tensor,
    device: str,
) -> float:
    output = way(values, chains.gather, chains.readers)
    synchronise(device)
    began = time.perf_counter()
    torch.autograd.grad(output, values, upstream)
    synchronise(device)
    return time.perf_counter() - began
