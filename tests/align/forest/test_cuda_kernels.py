"""On a GPU: both kernels against dense attention in float64, values and every gradient."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from align.forest.attention import tree_varlen_attention
from align.forest.blocks import BlockedForest, ends_of
from align.forest.chains import GatheredChains
from align.forest.flex import tree_flex_attention
from align.forest.radix import Forest, grow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "tree_varlen": (tree_varlen_attention, GatheredChains),
    "tree_flex": (tree_flex_attention, BlockedForest),
}
# A few units of rounding (2^-8 and 2^-24) per number, relative to the norm of all; sums of products
# in float32 gather more of them than those in 16 bits, whose factors alone are rounded so coarsely.
BOUND = {torch.bfloat16: 8 * 2.0**-8, torch.float32: 64 * 2.0**-24}


@pytest.fixture(scope="module")
def forest() -> Forest:
    """Pairs, one of them long, and a tree whose stretches end anywhere; 1000 to 4000 tokens."""
    source = random.Random(0)

    def text(n: int) -> list[int]:
        return [source.randrange(1, 50_000) for _ in range(n)]

    rows = []
    for prompt, *completions in ((200, 64, 90), (700, 30, 31, 5), (17, 3, 400), (128, 128, 1)):
        start = text(prompt)
        rows += [start + text(n) for n in completions]
    way = text(60)
    for _ in range(6):
        step = text(40)
        rows += [way + step, way + text(25)]
        way = way + step
    return grow([np.array(row, np.int32) for row in rows])


def dense(
    tensors: list[Tensor],
    forest: Forest,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    place = torch.arange(len(forest.ids), device="cuda")
    end = torch.from_numpy(ends_of(forest)).cuda()
    position = torch.from_numpy(forest.position).cuda()
    seen = (place[None] <= place[:, None]) & (place[:, None] < end[None])
    if window is not None:
        seen &= position[:, None] - position[None] < window
    return scaled_dot_product_attention(
        *tensors, attn_mask=seen, scale=scaling, enable_gqa=True
    ).transpose(1, 2)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """Each shape of heads and each window is a compilation, of which torch keeps eight."""
    yield
    torch._dynamo.reset()


BF16, FLOAT32 = torch.bfloat16, torch.float32
VARLEN = [
    ("tree_varlen", BF16, width, *heads, window, scaling)
    for width in (64, 128, 256)
    for heads in ((4, 4), (4, 1), (14, 2))
    for window in (None, 1, 100, 10_000)
    for scaling in (None, 0.3)
]
# Each takes a compilation.
FLEX = [
    ("tree_flex", BF16, 64, 14, 2, None, None),
    ("tree_flex", BF16, 128, 4, 1, 100, 0.3),
    ("tree_flex", FLOAT32, 64, 4, 4, None, 0.3),
    ("tree_flex", FLOAT32, 128, 4, 1, 100, None),
]


@pytest.mark.parametrize(
    ("backend", "dtype", "width", "heads", "key_heads", "window", "scaling"), [*VARLEN, *FLEX]
)
def test_values_and_gradients(
    backend: str,
    dtype: torch.dtype,
    width: int,
    heads: int,
    key_heads: int,
    window: int | None,
    scaling: float | None,
    forest: Forest,
) -> None:
    function, layout = FUNCTIONS[backend]
    tree = layout.of(forest).to("cuda")
    slots = len(tree.end) if backend == "tree_flex" else len(forest.ids)
    source = torch.Generator("cuda").manual_seed(0)
    narrow = [
        torch.randn(1, n, slots, width, generator=source, device="cuda", dtype=dtype)
        for n in (heads, key_heads, key_heads)
    ]
    wide = [tensor.double()[:, :, : len(forest.ids)].requires_grad_() for tensor in narrow]
    for tensor in narrow:
        tensor.requires_grad_()
    expected = dense(wide, forest, scaling, window)
    found, _ = function(
        nn.Identity(), *narrow, None, scaling=scaling, sliding_window=window, tree=tree
    )
    assert found.dtype == dtype
    found = found[:, : len(forest.ids)]
    bound = BOUND[dtype]
    assert error(found, expected) < bound
    upstream = torch.randn(expected.shape, generator=source, device="cuda").to(dtype)
    gradients = torch.autograd.grad(found, narrow, upstream)
    theirs = torch.autograd.grad(expected, wide, upstream.double())
    for name, gradient, its in zip("qkv", gradients, theirs, strict=True):
        # With a window of one key the weights are all 1, and scores have no gradient.
        if its.norm() == 0:
            assert gradient.float().norm() < bound * theirs[2].norm()
            continue
        assert error(gradient[:, :, : len(forest.ids)], its) < 2 * bound, name
        assert not gradient[:, :, len(forest.ids) :].any()


@pytest.mark.parametrize("backend", FUNCTIONS)
def test_the_same_gradients_twice(backend: str, forest: Forest) -> None:
    function, layout = FUNCTIONS[backend]
    tree = layout.of(forest).to("cuda")
    slots = len(tree.end) if backend == "tree_flex" else len(forest.ids)
    source = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(1, n, slots, 64, generator=source, device="cuda", dtype=torch.bfloat16)
        for n in (8, 2, 2)
    ]
    for tensor in tensors:
        tensor.requires_grad_()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            found, _ = function(nn.Identity(), *tensors, None, tree=tree)
            runs.append(torch.autograd.grad(found.float().square().sum(), tensors))
    finally:
        torch.use_deterministic_algorithms(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_flex_with_soft_caps_and_sinks(forest: Forest) -> None:
    tree = BlockedForest.of(forest).to("cuda")
    source = torch.Generator("cuda").manual_seed(0)
    narrow = [
        (2 * torch.randn(1, n, len(tree.end), 64, generator=source, device="cuda")).requires_grad_()
        for n in (4, 2, 2)
    ]
    sinks = torch.tensor([-1.0, 0.5, 2.0, 0.0], device="cuda", requires_grad=True)
    found, _ = tree_flex_attention(
        nn.Identity(), *narrow, None, softcap=3.0, s_aux=sinks, tree=tree
    )
    tensors = [*narrow, sinks]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    q, k, v, column = wide
    scores = 3 * torch.tanh(q @ k.repeat_interleave(2, 1).mT / 8 / 3)
    place = torch.arange(len(tree.end), device="cuda")
    seen = (place[None] <= place[:, None]) & (place[:, None] < tree.end[None])
    scores = scores.masked_fill(~seen, float("-inf"))
    column = column[None, :, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, column], dim=3).softmax(dim=3)[..., :-1]
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    bound = BOUND[torch.float32]
    assert error(found, expected) < bound
    upstream = torch.randn(expected.shape, generator=source, device="cuda")
    pairs = zip(
        torch.autograd.grad(found, tensors, upstream),
        torch.autograd.grad(expected, wide, upstream.double()),
        strict=True,
    )
    for gradient, its in pairs:
        assert error(gradient, its) < bound
