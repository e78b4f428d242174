"""Attention over a forest by FlexAttention, as transformers' attention function `tree_flex`.

Nothing is gathered: queries and keys are the pack's own, and a mask says which tiles to look at.
Slower than FlashAttention on 16 bits, but it computes in float32, with soft-capped scores and with
sinks, and its backward pass adds up in the same order each time.

Source: Dong et al., FlexAttention, 2024, arXiv:2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from align.forest.blocks import BlockedForest
from align.forest.refusal import UnsupportedAttention, kernel_dtype, look_at


def tree_flex_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: BlockedForest | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """One call of FlexAttention.

    Args:
        module: the attention layer.
        query: [1, H, S, D].
        key: [1, H_kv, S, D].
        value: [1, H_kv, S, D_v].
        attention_mask: must be None.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: must be 0.
        sliding_window: keys that a query sees at most, itself included.
        softcap: c in c * tanh(scores / c).
        s_aux: [H] sinks: one more score for each query, whose value is zero.
        tree: what is visible.
        asked: what else the model hands its attention.

    Returns:
        [1, S, H, D_v], and no weights.

    Raises:
        UnsupportedAttention: something is asked that is not computed here.
    """
    if not isinstance(tree, BlockedForest):
        raise UnsupportedAttention("attention `tree_flex` was called without its tiles")
    look_at(module, query, attention_mask, sliding_window, asked)
    if dropout:
        raise UnsupportedAttention("dropout in attention")
    if query.shape[1] % key.shape[1]:
        raise UnsupportedAttention(
            f"FlexAttention, which cannot share {key.shape[1]} heads of keys among "
            f"{query.shape[1]} heads of queries"
        )
    dtype = kernel_dtype(value)
    output, normaliser = _attend(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        tree.mask(sliding_window),
        scaling,
        softcap,
        has_sinks=s_aux is not None,
    )
    if s_aux is not None:
        # exp(normaliser) is what the weights were divided by; a sink adds exp(s_aux) to it.
        kept = torch.sigmoid(normaliser - s_aux.to(normaliser.dtype)[None, :, None])
        output = output * kept[..., None].to(output.dtype)
    return output.transpose(1, 2).to(query.dtype), None


AttentionInterface.register("tree_flex", tree_flex_attention)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float | None,
    softcap: float | None,
    *,
    has_sinks: bool,
) -> tuple[Tensor, Any]:
    """[1, H, S, D_v], and [1, H, S] the scores' log-sum-exp in nats where there are sinks."""
    told: dict[str, Any] = {}
    if softcap is not None:
        told["score_mod"] = _bent(softcap)
    if has_sinks:
        told["return_aux"] = _with_normaliser()
    try:
        found = _kernel(query.device.type)(
            query,
            key,
            value,
            block_mask=mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            **told,
        )
    except RuntimeError as failure:
        if (said := said_of(failure)) is failure:
            raise
        raise said from failure
    return (found[0], found[1].lse) if has_sinks else (found, None)


def said_of(failure: RuntimeError) -> RuntimeError | UnsupportedAttention:
    """A failure as it is, or as a refusal where it is the compiler's; its backward pass fails late.

    Args:
        failure: of a forward or a backward pass.
    """
    # Imported late, because it takes a second.
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(failure, TorchDynamoException):
        return failure
    why = str(failure).strip().partition("\n")[0]
    return UnsupportedAttention(f"FlexAttention, which torch could not compile here ({why})")


def _bent(softcap: float) -> Callable[..., Tensor]:
    def bent(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return bent


def _with_normaliser() -> Any:
    try:
        from torch.nn.attention.flex_attention import AuxRequest
    except ImportError as missing:
        raise UnsupportedAttention(
            f"attention with s_aux, which needs torch 2.9 or later ({torch.__version__} is here)"
        ) from missing
    return AuxRequest(lse=True)


# How many compilations are kept: one for each dtype, shape of heads, window, and with or without a
# gradient. Torch keeps eight and then gives up.
COMPILED = 64


@cache
def _kernel(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return _on_cpu
    import torch._dynamo

    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, COMPILED)
    # Whole, so that a compilation that fails is not replaced by a dense matrix in silence.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, **told: Any) -> Any:
    """Not compiled: that takes longer than a pass that is only looked at."""
    from torch.nn.attention.flex_attention import flex_attention

    if any(one.requires_grad for one in (query, key, value)):
        raise UnsupportedAttention("FlexAttention, which has no backward pass on a CPU")
    return flex_attention(query, key, value, **told)
