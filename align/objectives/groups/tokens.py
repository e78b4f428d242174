"""Token-level terms of losses over groups: [N, T] with 0 on what is masked, finite everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from align.types import Logps, at_least_float32

LARGEST_LOG_RATIO = 20.0  # nats


def token_logratio(policy: Logps, frozen: Logps) -> Tensor:
    """[N, T] nats: log-ratio of every completion token."""
    return token_logps(policy) - token_logps(frozen)


def token_logps(logps: Logps) -> Tensor:
    """[N, T] nats, in float32 or wider."""
    # masked_fill and not a product: a masked slot may hold inf or nan, and inf * 0 is nan.
    return at_least_float32(logps.token).masked_fill(~logps.mask, 0.0)


def ratio(logratio: Tensor) -> Tensor:
    """exp(logratio), its value capped at e^20 and its gradient going on from there."""
    capped = logratio.detach().clamp(max=LARGEST_LOG_RATIO).exp()
    return capped * (logratio - logratio.detach()).exp()


def k3(policy: Logps, frozen: Logps) -> Tensor:
    """[N, T] nats: exp(-x) + x - 1 of the log-ratio x, a KL estimate that is never negative.

    Schulman 2020, "Approximating KL Divergence", as GRPO has it: unbiased where the policy wrote
    the tokens.
    """
    x = token_logratio(policy, frozen)
    return ratio(-x) + x - 1


def clipped_gain(
    advantage: Tensor, u: Tensor, low: float, high: float, largest: float | None = None
) -> Tensor:
    """min(u A, clip(u, 1 - low, 1 + high) A): PPO's, to be maximised (arXiv:1707.06347, eq. 7).

    Args:
        advantage: A, of the shape of `u` or one that spreads to it.
        u: ratios of probabilities.
        low: how far u counts below 1, where A < 0.
        high: how far u counts above 1, where A > 0.
        largest: what u is cut to before all else, which bounds the loss where A < 0 (the dual clip
            of arXiv:1912.09729, TRL's `delta`).
    """
    kept = u if largest is None else u.clamp(max=largest)
    return torch.minimum(kept * advantage, u.clamp(1 - low, 1 + high) * advantage)


def stopped_by_clip(advantage: Tensor, u: Tensor, low: float, high: float) -> Tensor:
    """1 where u is beyond what the clip lets A drive it to, which leaves no gradient; else 0."""
    u = u.detach()
    return (advantage * (u - u.clamp(1 - low, 1 + high)) > 0).to(u.dtype)


def mean_logratio(logratio: Tensor, policy: Logps) -> Tensor:
    """[N] nats: mean over the completion's tokens of log-ratios [N, T]."""
    return token_sum(logratio, policy.mask) / policy.lengths()


def token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """[N]: sums over completion tokens."""
    return values.masked_fill(~mask, 0.0).sum(dim=1)


def is_last(mask: Tensor) -> Tensor:
    """[N, T] bool: True on the last completion token of each row."""
    return mask & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
