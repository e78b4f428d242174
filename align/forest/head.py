"""The LM head on scored edges only, in chunks: logits of more than one chunk never exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits of one chunk, in elements: 32 MiB in float32.
CHUNK = 1 << 23


@dataclass(frozen=True, eq=False)
class Head:
    """An LM head: logits = softcap(scale * (hidden @ weight^T + bias)).

    Attributes:
        weight: [V, d].
        bias: [V] or None.
        scale: factor on the logits.
        softcap: c in c * tanh(logits / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


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
class LayerHead:
    """An LM head that is more than a matrix, such as one with an adapter on it.

    Attributes:
        layer: hidden [n, d] -> [n, V]; V is its `out_features`, as for every linear layer.
        scale: as in `Head`.
        softcap: as in `Head`.
    """

    layer: nn.Module
    scale: float = 1.0
    softcap: float | None = None


AnyHead = Head | LayerHead
# (hidden [E, d], target [E], head, with statistics?) -> log-probs [E] in nats, statistics or None
EdgeLogps = Callable[[Tensor, Tensor, AnyHead, bool], tuple[Tensor, EdgeStatistics | None]]


def head_of(model: nn.Module) -> AnyHead:
    """The LM head of a transformers causal language model, by its own and its config's word."""
    language: Any = model
    layer = language.get_output_embeddings()
    config = language.config.get_text_config()
    scale, softcap = _scale(config), getattr(config, "final_logit_softcapping", None)
    # By its forward pass: adapters and quantised layers are Linear by name or by inheritance, and
    # FSDP2 makes a class of its own of each layer that it shards.
    if getattr(type(layer), "forward", None) is not nn.Linear.forward:
        return LayerHead(layer, scale, softcap)
    weight, bias = layer.weight, layer.bias
    # FSDP2 shards parameters as DTensors.
    weight, bias = (
        tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for tensor in (weight, bias)
    )
    return Head(weight, bias, scale, softcap)


def _scale(config: Any) -> float:
    # Cohere, Muse Glimmer and Falcon-H1 multiply; Granite divides, HyperCLOVA X does not.
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)
    return 1.0


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
    if isinstance(head, LayerHead):
        return _through_layer(hidden, target, head, statistics)
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    # With the model split across devices, the backbone can end on another one than the head.
    hidden, target = hidden.to(weight.device), target.to(weight.device)
    # An autocast backbone gives another dtype than the head's weights have.
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    logps, entropy, mean_logits, is_top1 = _ChunkedLogps.apply(
        hidden, weight, bias, target, head.scale, head.softcap, statistics
    )
    if not statistics:
        return logps, None
    return logps, EdgeStatistics(entropy, mean_logits, is_top1)


def _through_layer(
    hidden: Tensor, target: Tensor, head: LayerHead, statistics: bool
) -> tuple[Tensor, EdgeStatistics | None]:
    def of_part(states: Tensor, at: Tensor) -> Tensor:
        z = _bent(head.layer(states), head.scale, head.softcap)
        logps = z.log_softmax(dim=1)
        found = [logps.gather(1, at[:, None])[:, 0]]
        if statistics:
            with torch.no_grad():
                found.append(-(logps.exp() * logps).sum(dim=1))
                found.append(z.mean(dim=1))
                found.append((z.argmax(dim=1) == at).to(z.dtype))
        return torch.stack(found)

    vocabulary = cast("int", head.layer.out_features)
    parts = [
        checkpoint(of_part, hidden[part], target[part], use_reentrant=False)
        for part in _parts(len(target), vocabulary) or [slice(0, 0)]
    ]
    logps, *stats = torch.cat(cast("list[Tensor]", parts), dim=1)
    return logps, EdgeStatistics(*(s.detach() for s in stats)) if statistics else None


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """[n, V] in float32 or wider."""
    z = hidden @ weight.T
    if bias is not None:
        z += bias
    return _bent(z, scale, softcap)


def _bent(z: Tensor, scale: float, softcap: float | None) -> Tensor:
    if z.dtype.itemsize < 4:
        z = z.float()
    if scale != 1.0:
        z = z * scale
    return z if softcap is None else torch.tanh(z / softcap) * softcap


class _ChunkedLogps(torch.autograd.Function):
    """log-softmax at one target per row, with logits made again in the backward pass.

    d logp / d z = onehot(target) - softmax(z), so the gradient of `hidden` is a row's upstream
    gradient times one vector per row. Where the weight is frozen (adapters), that vector is made in
    the forward pass, while the logits are there, and nothing is made twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        scale: float,
        softcap: float | None,
        statistics: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        edges = hidden.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logps = hidden.new_empty(edges, dtype=wide)
        normaliser = torch.empty_like(logps)
        stats = [torch.empty_like(logps) for _ in range(3)] if statistics else None
        only_hidden = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        direction = torch.empty_like(hidden) if only_hidden else None
        for part in _parts(edges, weight.shape[0]):
            z = _logits(hidden[part], weight, bias, scale, softcap)
            at = target[part, None]
            normaliser[part] = z.logsumexp(dim=1)
            logps[part] = z.gather(1, at)[:, 0] - normaliser[part]
            if stats is not None:
                p = (z - normaliser[part, None]).exp_()
                stats[0][part] = normaliser[part] - (p * z).sum(dim=1)
                stats[1][part] = z.mean(dim=1)
                stats[2][part] = (z.argmax(dim=1) == at[:, 0]).to(wide)
            if direction is not None:
                slope = _slope(z, at, normaliser[part], scale, softcap)
                direction[part] = slope.to(weight.dtype) @ weight
        ctx.scale, ctx.softcap = scale, softcap
        if direction is not None:
            ctx.save_for_backward(direction)
        else:
            ctx.save_for_backward(hidden, weight, bias, target, normaliser)
        entropy, mean_logits, is_top1 = stats or (None, None, None)
        if stats is not None:
            ctx.mark_non_differentiable(*stats)
        return logps, entropy, mean_logits, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        assert grad is not None
        if len(ctx.saved_tensors) == 1:
            (direction,) = ctx.saved_tensors
            return (direction * grad[:, None].to(direction.dtype), *(None,) * 6)
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if needs_bias else None
        for part in _parts(hidden.shape[0], weight.shape[0]):
            z = _logits(hidden[part], weight, bias, ctx.scale, ctx.softcap)
            slope = _slope(z, target[part, None], normaliser[part], ctx.scale, ctx.softcap)
            slope *= grad[part, None]
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
            *(None,) * 4,
        )


def _slope(
    z: Tensor, target: Tensor, normaliser: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """D logp / d (hidden @ weight^T), [n, V]; overwrites `z` where it can."""
    bend = None if softcap is None else 1 - (z / softcap) ** 2
    slope = z.sub_(normaliser[:, None]).exp_().neg_()
    slope.scatter_add_(1, target, torch.ones_like(target, dtype=slope.dtype))
    if bend is not None:
        slope *= bend
    if scale != 1.0:
        slope *= scale
    return slope


def _parts(edges: int, vocabulary: int) -> list[slice]:
    size = max(CHUNK // vocabulary, 1)
    return [slice(begin, min(begin + size, edges)) for begin in range(0, edges, size)]
