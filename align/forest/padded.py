"""The padded backend: one right-padded row per sequence, completions gathered to the left.

Right padding needs no position ids: a causal model never looks at what follows a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.types import Logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenRow:
    """One sequence to score: log p(completion | prompt)."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


def pad_rows(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Tensor]:
    """Right-padded rows as a model wants them.

    Returns:
        `input_ids`, `attention_mask`, `completion_mask`, each [R, S] int64.
    """
    width = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    completion_mask = torch.zeros_like(input_ids)
    for r, row in enumerate(rows):
        start, stop = len(row.prompt_ids), len(row.prompt_ids) + len(row.completion_ids)
        input_ids[r, :stop] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        attention_mask[r, :stop] = 1
        completion_mask[r, start:stop] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "completion_mask": completion_mask,
    }


def completion_logps(token_logps: Tensor, completion_mask: Tensor) -> Logps:
    """Gathers the completion tokens of each row to the left.

    Args:
        token_logps: [R, S-1] nats; slot s holds log p(token s+1 | tokens up to s).
        completion_mask: [R, S], one unbroken stretch of ones per row. A completion token at
            position 0 has no predecessor and is not scored.

    Returns:
        [R, T] with T the longest completion.
    """
    scored = completion_mask[:, 1:].bool()
    lengths = scored.sum(dim=1)
    offset = torch.arange(int(lengths.max()), device=scored.device)
    mask = offset[None, :] < lengths[:, None]
    first = scored.int().argmax(dim=1)
    index = (first[:, None] + offset[None, :]).clamp(max=scored.shape[1] - 1)
    token = token_logps.gather(1, index).masked_fill(~mask, 0.0)
    return Logps(token, mask)


@torch.no_grad()
def score_rows(
    model: PreTrainedModel, rows: Sequence[TokenRow], *, pad_id: int = 0, batch_size: int = 64
) -> Logps:
    """Log-probs of every row's completion under a causal language model, without gradient.

    The model is put in eval mode for the call and given back as it came. Rows are batched by
    length.

    Returns:
        [R, T] nats, float32 (float64 for a float64 model), on the CPU, in the order of `rows`.

    Raises:
        ValueError: a row has no completion token, or no prompt token to predict the first one from.
    """
    for r, row in enumerate(rows):
        if not row.prompt_ids or not row.completion_ids:
            raise ValueError(
                f"row {r} cannot be scored: its prompt or its completion has no token."
            )
    width = max((len(row.completion_ids) for row in rows), default=0)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    token = torch.zeros(len(rows), width, dtype=dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    order = sorted(
        range(len(rows)), key=lambda r: len(rows[r].prompt_ids) + len(rows[r].completion_ids)
    )
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(order), batch_size):
            chunk = order[begin : begin + batch_size]
            batch = pad_rows([rows[r] for r in chunk], pad_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            completion_mask = batch.pop("completion_mask")
            # The LM head runs from the token before the earliest completion on; earlier logits
            # score nothing.
            keep = completion_mask.shape[1] - int(completion_mask.argmax(dim=1).min()) + 1
            logits = model(**batch, use_cache=False, logits_to_keep=keep).logits[:, :-1].to(dtype)
            target = batch["input_ids"][:, -logits.shape[1] :]
            token_logps = logits.gather(2, target[:, :, None])[:, :, 0] - logits.logsumexp(dim=2)
            logps = completion_logps(token_logps, completion_mask[:, -keep:])
            token[chunk, : logps.token.shape[1]] = logps.token.cpu()
            mask[chunk, : logps.mask.shape[1]] = logps.mask.cpu()
    finally:
        model.train(was_training)
    return Logps(token, mask)
