"""The LM head on scored edges only, in chunks: logits of more than one chunk never exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.forest.lm_head import (
    AnyHead,
    LayerHead,
    Predictions,
    as_computed,
    bent,
    matrix_logits,
    vocabulary_of,
)

# Logits of one chunk, in elements: 32 MiB in float32.
CHUNK = 1 << 23


@dataclass(frozen=True, eq=False)
class EdgeStatistics:
    """What logging asks for beside the log-probs, detached, [E] each.

    Attributes:
        entropy: of the next-token distribution, in nats.
        mean_logits: mean over the vocabulary.
        is_top1: 1.0 where the target has the highest logit.
    """

    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


@dataclass(frozen=True, eq=False)
class EdgeValues:
    """What there is to know of E edges, [E] each, float32 or wider; None was not asked for.

    Attributes:
        logps: log p(target | hidden), nats.
        statistics: for logging.
        collision: log sum_v p(v)^2, nats, detached.
        divergence: KL(reference || policy) of the next-token distributions, nats, with gradient.
    """

    logps: Tensor
    statistics: EdgeStatistics | None = None
    collision: Tensor | None = None
    divergence: Tensor | None = None


# (hidden [E, d], target [E], head, with statistics?) -> log-probs [E] in nats, statistics or None
EdgeLogps = Callable[[Tensor, Tensor, AnyHead, bool], tuple[Tensor, EdgeStatistics | None]]
# Some of the edges -> log-probs of all tokens under the reference, [n, V] nats.
LogProbs = Callable[[slice], Tensor]


def edge_logps(
    hidden: Tensor, target: Tensor, head: AnyHead, statistics: bool = False
) -> tuple[Tensor, EdgeStatistics | None]:
    """Log p(target | hidden) in nats, [E], float32 or wider.

    Args:
        hidden: [E, d] hidden states, one per edge; repeated rows are fine.
        target: [E] int64.
        head: the LM head.
        statistics: whether to compute `EdgeStatistics` too.
    """
    found = edge_values(hidden, target, head, statistics=statistics)
    return found.logps, found.statistics


def edge_values(
    hidden: Tensor,
    target: Tensor,
    head: AnyHead,
    *,
    statistics: bool = False,
    collision: bool = False,
    reference: Predictions | None = None,
) -> EdgeValues:
    """The log-probs of `edge_logps`, and what is asked for beside them.

    Args:
        hidden: [E, d] hidden states, one per edge; repeated rows are fine.
        target: [E] int64.
        head: the LM head.
        statistics: whether to compute `EdgeStatistics`.
        collision: whether to compute it.
        reference: what the divergence is from, at the same edges; equal logits give exactly 0.

    Raises:
        RecipeError: the reference has another vocabulary.
    """
    if isinstance(head, LayerHead):
        return _through_layer(hidden, target, head, statistics, collision, reference)
    hidden, weight, bias = as_computed(hidden, head)
    against = None
    if reference is not None:
        against = reference.log_probs(vocabulary_of(head), hidden.device)
    asked = _Asked(head.scale, head.softcap, statistics, collision, against)
    logps, divergence, together, *stats = _ChunkedLogps.apply(
        hidden, weight, bias, target.to(hidden.device), asked
    )
    return EdgeValues(logps, EdgeStatistics(*stats) if statistics else None, together, divergence)


def _through_layer(
    hidden: Tensor,
    target: Tensor,
    head: LayerHead,
    statistics: bool,
    collision: bool,
    reference: Predictions | None,
) -> EdgeValues:
    vocabulary = vocabulary_of(head)
    against = None if reference is None else reference.log_probs(vocabulary, hidden.device)

    def of_part(part: slice) -> Tensor:
        at = target[part]
        z = bent(head.layer(hidden[part]), head.scale, head.softcap)
        logps = z - z.logsumexp(dim=1)[:, None]
        found = [logps.gather(1, at[:, None])[:, 0]]
        if against is not None:
            found.append(_divergence(against(part).to(logps), logps))
        with torch.no_grad():
            if collision:
                found.append((2 * logps).logsumexp(dim=1))
            if statistics:
                found.append(-(logps.exp() * logps).sum(dim=1))
                found.append(z.mean(dim=1))
                found.append((z.argmax(dim=1) == at).to(z.dtype))
        return torch.stack(found)

    parts = [
        checkpoint(of_part, part, use_reentrant=False)
        for part in _parts(len(target), vocabulary, against) or [slice(0, 0)]
    ]
    rows = iter(torch.cat(cast("list[Tensor]", parts), dim=1))
    logps = next(rows)
    divergence = None if against is None else next(rows)
    together = next(rows).detach() if collision else None
    stats = EdgeStatistics(*(row.detach() for row in rows)) if statistics else None
    return EdgeValues(logps, stats, together, divergence)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What `_ChunkedLogps` is told beside tensors."""

    scale: float
    softcap: float | None
    statistics: bool
    collision: bool
    against: LogProbs | None


class _ChunkedLogps(torch.autograd.Function):
    """log-softmax at one target per row, with logits made again in the backward pass.

    d logp / d z = onehot(target) - softmax(z), so the gradient of `hidden` is a row's upstream
    gradient times one vector per row; of the divergence it is softmax(z) - reference. Where the
    weight is frozen (adapters), these vectors are made in the forward pass, while the logits are
    there, and nothing is made twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        asked: _Asked,
    ) -> tuple[Tensor | None, ...]:
        edges, against = hidden.shape[0], asked.against
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logps = hidden.new_empty(edges, dtype=wide)
        normaliser = torch.empty_like(logps)
        divergence = None if against is None else torch.empty_like(logps)
        collision = torch.empty_like(logps) if asked.collision else None
        stats = [torch.empty_like(logps) for _ in range(3)] if asked.statistics else None
        only_hidden = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        directions: list[Tensor] = []
        if only_hidden:
            directions = [torch.empty_like(hidden) for _ in range(1 if against is None else 2)]
        for part in _parts(edges, weight.shape[0], against):
            z = matrix_logits(hidden[part], weight, bias, asked.scale, asked.softcap)
            at = target[part, None]
            normaliser[part] = z.logsumexp(dim=1)
            logps[part] = z.gather(1, at)[:, 0] - normaliser[part]
            if stats is not None or collision is not None:
                p = (z - normaliser[part, None]).exp_()
                if stats is not None:
                    stats[0][part] = normaliser[part] - (p * z).sum(dim=1)
                    stats[1][part] = z.mean(dim=1)
                    stats[2][part] = (z.argmax(dim=1) == at[:, 0]).to(wide)
                if collision is not None:
                    collision[part] = p.square_().sum(dim=1).log()
            frozen = None if against is None else against(part).to(wide)
            if frozen is not None and divergence is not None:
                divergence[part] = _divergence(frozen, z - normaliser[part, None])
            if directions:
                slopes = _slopes(z, at, normaliser[part], frozen, asked)
                for direction, slope in zip(directions, slopes, strict=True):
                    direction[part] = slope.to(weight.dtype) @ weight
        if directions:
            ctx.save_for_backward(*directions)
        else:
            ctx.asked = asked
            ctx.save_for_backward(hidden, weight, bias, target, normaliser)
        constant = [*(() if collision is None else (collision,)), *(stats or ())]
        ctx.mark_non_differentiable(*constant)
        return logps, divergence, collision, *(stats or (None, None, None))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        upstream = [grad for grad in grads[:2] if grad is not None]
        if len(ctx.saved_tensors) <= 2:
            shares = [
                direction * grad[:, None].to(direction.dtype)
                for direction, grad in zip(ctx.saved_tensors, upstream, strict=True)
            ]
            return (shares[0] if len(shares) == 1 else shares[0] + shares[1], *(None,) * 4)
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        asked: _Asked = ctx.asked
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if needs_bias else None
        for part in _parts(hidden.shape[0], weight.shape[0], asked.against):
            z = matrix_logits(hidden[part], weight, bias, asked.scale, asked.softcap)
            frozen = None if asked.against is None else asked.against(part).to(z)
            slope, *others = _slopes(z, target[part, None], normaliser[part], frozen, asked)
            slope *= upstream[0][part, None]
            for other in others:
                slope += other.mul_(upstream[1][part, None])
            narrow = slope.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[part])
            if grad_weight is not None:
                if grad_weight.dtype == narrow.dtype:
                    grad_weight.addmm_(narrow.T, hidden[part])
                else:
                    grad_weight += narrow.T @ hidden[part]
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 2,
        )


def _divergence(frozen: Tensor, logps: Tensor) -> Tensor:
    """[n] nats: KL(frozen || policy) of log-probs [n, V]."""
    return (frozen.exp() * (frozen - logps)).sum(dim=1)


def _slopes(
    z: Tensor, target: Tensor, normaliser: Tensor, frozen: Tensor | None, asked: _Asked
) -> list[Tensor]:
    """D logp / d (hidden @ weight^T), [n, V], and the same of the divergence where there is one.

    Overwrites `z` where it can.
    """
    bend = None if asked.softcap is None else 1 - (z / asked.softcap) ** 2
    p = z.sub_(normaliser[:, None]).exp_()
    slopes = [] if frozen is None else [p - frozen.exp()]
    slope = p.neg_()
    slope.scatter_add_(1, target, torch.ones_like(target, dtype=slope.dtype))
    slopes.insert(0, slope)
    for one in slopes:
        if bend is not None:
            one *= bend
        if asked.scale != 1.0:
            one *= asked.scale
    return slopes


def _parts(edges: int, vocabulary: int, against: LogProbs | None) -> list[slice]:
    # Beside the policy's logits of a chunk stand the reference's.
    size = max(CHUNK // (vocabulary if against is None else 2 * vocabulary), 1)
    return [slice(begin, min(begin + size, edges)) for begin in range(0, edges, size)]
