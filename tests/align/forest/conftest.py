"""Token rows of every shape that shares prefixes, and two slow computations to compare with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import align.forest.flex
import align.forest.varlen
from align.forest import TokenRow
from align.forest.varlen import VarlenKernel

VOCABULARY = 100


def _cases() -> dict[str, list[TokenRow]]:
    source = random.Random(1)

    def some(n: int) -> list[int]:
        return [source.randrange(1, VOCABULARY) for _ in range(n)]

    cases: dict[str, list[TokenRow]] = {"pairs": []}
    for prompt_length, lengths in ((17, (9, 12)), (40, (5, 3)), (3, (30, 1)), (1, (4, 4))):
        prompt = some(prompt_length)
        cases["pairs"] += [TokenRow(prompt, some(n)) for n in lengths]

    prompt = some(20)
    cases["four of a prompt"] = [TokenRow(prompt, some(n)) for n in (6, 11, 1, 9)]

    # A step is prompt for the steps below it and completion in its own rows.
    cases["nested steps"] = []
    way = some(12)
    for _ in range(4):
        steps = [some(5), some(9)]
        cases["nested steps"] += [TokenRow(way, step) for step in steps]
        way = way + steps[0]

    prompt, first = some(25), some(8)
    cases["copies and shared openings"] = [
        TokenRow(prompt, first),
        TokenRow(prompt, first[:4] + some(2)),
        TokenRow(prompt, first[:6] + some(4)),
        TokenRow(prompt, list(first)),
        TokenRow(prompt, first[:2]),
    ]

    prompt, turn = some(10), some(7)
    later = prompt + turn + some(6)
    cases["turns of a conversation"] = [
        TokenRow(prompt, turn),
        TokenRow(prompt, some(5)),
        TokenRow(later, some(8)),
        TokenRow(later, some(4)),
    ]

    opening = some(9)
    cases["no prompt"] = [
        TokenRow([], opening + some(4)),
        TokenRow([], opening + some(3)),
        TokenRow([], opening),
        TokenRow(opening[:4], opening[4:]),
    ]
    return cases


CASES = _cases()


@pytest.fixture(scope="session")
def cases() -> dict[str, list[TokenRow]]:
    """Rows by the name of what is shared in them."""
    return CASES


@pytest.fixture(scope="session")
def every_row() -> list[TokenRow]:
    """The rows of all cases, as one batch."""
    return [row for rows in CASES.values() for row in rows]


@pytest.fixture(scope="session")
def own_logps() -> Callable[[nn.Module, Sequence[TokenRow]], list[Tensor]]:
    """Log-probs by the model's own forward pass: padded rows, full logits."""

    def compute(model: nn.Module, rows: Sequence[TokenRow]) -> list[Tensor]:
        device = next(model.parameters()).device
        tokens = [[*row.prompt_ids, *row.completion_ids] for row in rows]
        width = max(map(len, tokens))
        ids = torch.tensor([row + [7] * (width - len(row)) for row in tokens], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in tokens], device=device
        )
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=2)
        found = []
        for r, row in enumerate(rows):
            scored = range(max(len(row.prompt_ids), 1), len(row))
            found.append(
                torch.stack([logps[r, t - 1, tokens[r][t]] for t in scored])
                if scored
                else logps.new_zeros(0)
            )
        return found

    return compute


def varlen_by_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_borders: Tensor,
    key_borders: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` says that it computes, one sequence at a time.

    `window_size` is (keys before, keys after) the key at the lower right; -1 means all of them. It
    asserts what the CUDA kernel refuses, or reads wrongly; only the dtype may be a wide one.
    """
    assert query_borders.dtype == key_borders.dtype == torch.int32
    assert query_borders.is_contiguous()
    assert key_borders.is_contiguous()
    assert query.dtype == key.dtype == value.dtype
    assert query.is_contiguous()
    assert key.is_contiguous()
    assert value.is_contiguous()
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.shape[2] % 8 == 0
    assert query.shape[2] <= 256
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    queries, keys = query_borders.diff().tolist(), key_borders.diff().tolist()
    assert (sum(queries), sum(keys)) == (len(query), len(key))
    # Lower-right alignment with more queries than keys leaves queries that see nothing.
    assert all(n <= m for n, m in zip(queries, keys, strict=True))
    assert (longest_query, longest_key) == (max(queries), max(keys))
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[2] ** -0.5 if scale is None else scale
    before, after = window_size
    narrow, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value = (tensor.to(wide) for tensor in (query, key, value))
    outputs = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
        # How far a key lies after the one at the lower right of its query.
        ahead = torch.arange(len(k))[None] - torch.arange(len(q))[:, None] - (len(k) - len(q))
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        if before >= 0:
            hidden |= ahead < -before
        if after >= 0:
            hidden |= ahead > after
        # A kernel's insides know nothing of autocast.
        with torch.autocast(query.device.type, enabled=False):
            scores = torch.einsum("qhd,khd->hqk", q, k) * scale
            weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=2)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs).to(narrow)


def flex_by_matrix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_mask: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
    score_mod: Callable[..., Tensor] | None = None,
    return_aux: Any = None,
) -> Any:
    """What `flex_attention` says that it computes, by the whole matrix, so with a gradient.

    Of the mask's tiles only those that are cut look at its function, as in the kernel.
    """
    assert query.dtype == key.dtype == value.dtype
    assert enable_gqa == (query.shape[1] != key.shape[1])
    size = query.shape[2]
    assert size % 128 == 0
    assert tuple(block_mask.shape[-2:]) == (size, size)
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    narrow, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    place = torch.arange(size)
    zero = torch.zeros((), dtype=torch.int64)
    seen = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size // 128):
        queries = slice(128 * row, 128 * row + 128)
        for count, order, is_cut in (
            (block_mask.kv_num_blocks, block_mask.kv_indices, True),
            (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, False),
        ):
            for column in order[0, 0, row, : int(count[0, 0, row])].tolist():
                keys = slice(128 * column, 128 * column + 128)
                assert not seen[queries, keys].any(), "a tile is listed twice"
                seen[queries, keys] = (
                    block_mask.mask_mod(zero, zero, place[queries, None], place[None, keys])
                    if is_cut
                    else True
                )
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(wide) @ key.to(wide).mT
        scores = scores * (query.shape[3] ** -0.5 if scale is None else scale)
        if score_mod is not None:
            scores = score_mod(scores, zero, zero, place[:, None], place[None])
        scores = scores.masked_fill(~seen, float("-inf"))
        output = (scores.softmax(dim=3) @ value.to(wide)).to(narrow)
    return output if return_aux is None else (output, SimpleNamespace(lse=scores.logsumexp(dim=3)))


@pytest.fixture
def slow_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention `tree_flex` with a gradient on a CPU."""
    monkeypatch.setattr(align.forest.flex, "_kernel", lambda device: flex_by_matrix)


@pytest.fixture(scope="session")
def by_matrix() -> Callable[..., Any]:
    """What stands in for `flex_attention`."""
    return flex_by_matrix


@pytest.fixture(scope="session")
def by_loop() -> Callable[..., Tensor]:
    """What stands in for `varlen_attn`."""
    return varlen_by_loop


@pytest.fixture
def slow_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention `tree_varlen` without its CUDA kernel, in any floating dtype."""
    kernel = VarlenKernel.of(varlen_by_loop)
    wide = (torch.float64, torch.float32, *kernel.dtypes)
    monkeypatch.setattr(align.forest.varlen, "KERNEL", replace(kernel, dtypes=wide))


@pytest.fixture
def strict_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the kernel's own 16 bits only."""
    monkeypatch.setattr(align.forest.varlen, "KERNEL", VarlenKernel.of(varlen_by_loop))
