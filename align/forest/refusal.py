"""What a forest's attention looks at before it computes, and how it says no."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class UnsupportedAttention(ValueError):
    """A model asks its attention for something that a forest backend does not compute."""


# What models hand their attention that changes its result.
CHANGES_RESULT = ("softcap", "s_aux", "position_bias", "cache", "head_mask")

_windows: ContextVar[list[int | None] | None] = ContextVar("windows", default=None)


@contextmanager
def recorded_windows() -> Iterator[list[int | None]]:
    """Collects the sliding windows that layers ask for inside, in the order of their calls."""
    windows: list[int | None] = []
    token = _windows.set(windows)
    try:
        yield windows
    finally:
        _windows.reset(token)


def look_at(
    module: nn.Module,
    query: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None,
    asked: dict[str, Any],
    computed: Collection[str] = (),
) -> None:
    """Refuses what is not computed, and notes the window for whoever records them.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        attention_mask: must be None.
        sliding_window: keys that a query sees at most.
        asked: what else the model hands its attention.
        computed: names of `CHANGES_RESULT` that the caller computes.

    Raises:
        UnsupportedAttention: naming what is not computed.
    """
    if query.shape[0] != 1:
        raise UnsupportedAttention(f"a batch of {query.shape[0]} rows where one was laid out")
    if attention_mask is not None:
        raise UnsupportedAttention("the model makes an attention mask of its own")
    if asked.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("attention that is not causal")
    for name in CHANGES_RESULT:
        if name not in computed and asked.get(name) is not None:
            raise UnsupportedAttention(f"attention with {name}")
    if (windows := _windows.get()) is not None:
        windows.append(sliding_window)


def kernel_dtype(value: Tensor) -> torch.dtype:
    """What a kernel is to compute in: autocast's type, or that of the values.

    Queries and keys have been through the rotary embedding, which in a float32 model leaves them in
    float32 while the values are in autocast's type already.
    """
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
