"""Draws tokens from logits at given uniform numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from align.policies.base import Sampling


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """[R] token ids: the inverse of each row's cumulative distribution at its uniform number.

    Args:
        logits: [R, V], any float type.
        uniform: [R] float64 in [0, 1).
        sampling: temperature, then top_k, then top_p, as in transformers.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        logits = logits.masked_fill(_outside_nucleus(logits, sampling.top_p), -torch.inf)
    # Summed in float64: 24-bit sums would tie with a uniform number now and then.
    cumulative = logits.softmax(dim=1).double().cumsum(dim=1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return token[:, 0].clamp(max=logits.shape[1] - 1)


def _outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """[R, V] bool: not among the likeliest tokens that together reach `top_p`."""
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    p = ordered.softmax(dim=1)
    # What the likelier ones reach without it: the likeliest token is never outside.
    outside = p.cumsum(dim=1) - p >= top_p
    outside[:, 0] = False
    return torch.zeros_like(outside).scatter(1, order, outside)
