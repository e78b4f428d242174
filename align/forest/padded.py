"""Log-probs of any causal language model by its own forward pass over padded rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.forest.pack import Pack, padded_pack
from align.forest.rows import TokenRow
from align.types import Logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pictures = Callable[[Sequence[int], Tensor], Mapping[str, Tensor]]

EDGES = 512  # whose logits are float32 at a time


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    *,
    batch_size: int = 64,
    pictures: Pictures | None = None,
) -> Logps:
    """Log-probs of every row's completion under a causal language model, without gradient.

    The model is put in eval mode for the call and given back as it came. Rows are batched by
    length.

    Args:
        model: on its device.
        rows: what is scored.
        batch_size: rows of one forward pass.
        pictures: for a vision-language model, (numbers of a pass's rows, its token ids) -> what
            the model reads beside them.

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
    order = sorted(range(len(rows)), key=lambda r: len(rows[r]))
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(order), batch_size):
            chunk = order[begin : begin + batch_size]
            pack = padded_pack([rows[r] for r in chunk]).to(model.device)
            shown = {} if pictures is None else pictures(chunk, pack.input_ids)
            logps = pack.rows(0, len(chunk), own_edges(model, pack, shown))
            token[chunk, : logps.token.shape[1]] = logps.token.cpu()
            mask[chunk, : logps.mask.shape[1]] = logps.mask.cpu()
    finally:
        model.train(was_training)
    return Logps(token, mask)


def own_edges(model: Any, pack: Pack, pictures: Mapping[str, Tensor]) -> Tensor:
    """[E] nats at the edges of padded rows, by the model's own head; float32 or float64.

    Args:
        model: on its device.
        pack: of padded rows, on the same device.
        pictures: what a vision-language model reads beside them.
    """
    slots = pack.input_ids.shape[1]
    # The LM head runs from the token before the earliest completion on; earlier logits score
    # nothing.
    keep = slots - int((pack.predictor % slots).min())
    logits: Tensor = model(
        input_ids=pack.input_ids,
        attention_mask=pack.attention_mask,
        use_cache=False,
        logits_to_keep=keep,
        **{name: value.to(model.device) for name, value in pictures.items()},
    ).logits.flatten(0, 1)
    kept = pack.predictor // slots * keep + pack.predictor % slots - (slots - keep)
    wide = torch.promote_types(logits.dtype, torch.float32)
    edges: list[Tensor] = []
    for at, target in zip(kept.split(EDGES), pack.target.split(EDGES), strict=True):
        z = logits[at].to(wide)
        edges.append(z.gather(1, target[:, None])[:, 0] - z.logsumexp(dim=1))
    return torch.cat(edges)
