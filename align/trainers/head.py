# pyright: basic
"""TRL's LM head for packs: Triton kernels on GPUs, and it gathers a head that ZeRO-3 shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from align.forest.head import EdgeStatistics, edge_logps
from align.forest.lm_head import AnyHead, LayerHead

# Columns of the vocabulary per tile; TRL's own setting.
VOCABULARY_TILE = 32768


def trl_edge_logps(
    hidden: Tensor, target: Tensor, head: AnyHead, statistics: bool = False
) -> tuple[Tensor, EdgeStatistics | None]:
    """As `align.forest.head.edge_logps`, by TRL's chunked function."""
    if isinstance(head, LayerHead):
        return edge_logps(hidden, target, head, statistics)
    device: Any = head.weight.device
    names = ("log_probs", "entropy", "mean_logits", "is_top1") if statistics else ("log_probs",)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):  # type: ignore[arg-type]
        found: Any = ChunkedLogProbFunction.apply(
            hidden.to(device),
            head.weight,
            head.bias,
            target.to(device),
            1.0,
            VOCABULARY_TILE,
            head.softcap,
            head.scale,
            names,
        )
    logps, entropy, _, mean_logits, is_top1 = found
    if not statistics:
        return logps, None
    extra = (entropy, mean_logits, is_top1.to(torch.float32))
    return logps, EdgeStatistics(*(value.detach() for value in extra))
