"""A batch of token rows that a causal language model reads on and on, with a key-value cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from align.policies.loaded import plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# An index and not the number 1: a slice of the hidden states is not contiguous, and with a head
# that is not trained torch would then copy its weights for every row.
LAST = torch.tensor([-1])


class Reading:
    """A batch of samples that the model has read so far; prompts are padded on the left.

    Args:
        model: on its device; the caller has put it in eval mode.
        prompts: token ids, none empty; each is read once.
        copies: samples of each prompt, side by side in this order.
        pictures: token ids [R, S] of the prompts as padded -> what the model reads beside them.

    Attributes:
        logits: [R, V] after the last token of every row.
        can_select: whether rows can be repeated and taken out; recurrent layers offer neither.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        copies: Sequence[int],
        pictures: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._model: Any = model
        self._plain = plain_model(model)
        forward = inspect.signature(self._plain.forward).parameters
        self._takes_positions = "position_ids" in forward
        self._keeps_last = {"logits_to_keep": LAST} if "logits_to_keep" in forward else {}
        # Qwen-VL counts a picture's places along its sides, from the pictures themselves.
        inner = getattr(self._plain, "model", None)
        places_pictures = hasattr(inner, "get_rope_index")
        device = model.device
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        # Without padding no mask is given, and attention is at its fastest.
        self._mask = mask if any(len(p) < width for p in prompts) else None
        # None while the model counts them itself.
        self._positions: Any = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=self._plain.config)
        # [R, 1] by how much a row's places run ahead of its tokens; None where they do not.
        self._ahead: Tensor | None = None
        if pictures is not None and places_pictures:
            self._positions = None
            self.logits = self._read(ids, pictures(ids))
            self._ahead = self._plain.model.rope_deltas
            # Nobody else is to go on from this batch.
            self._plain.model.rope_deltas = None
            self._positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        else:
            self.logits = self._read(ids, {} if pictures is None else pictures(ids))
        self.can_select = all(hasattr(x, "batch_select_indices") for x in self._cache.layers)
        if any(number > 1 for number in copies):
            self._repeat(ids, torch.tensor(list(copies), device=device))
        self._positions = self._positions[:, -1:]

    def _repeat(self, ids: Tensor, copies: Tensor) -> None:
        self._positions = self._positions.repeat_interleave(copies, dim=0)
        if self._ahead is not None:
            self._ahead = self._ahead.repeat_interleave(copies, dim=0)
        if self._mask is not None:
            self._mask = self._mask.repeat_interleave(copies, dim=0)
        if self.can_select:
            rows = torch.arange(len(copies), device=ids.device).repeat_interleave(copies)
            self._cache.batch_select_indices(rows)
            self.logits = self.logits[rows]
        else:
            self._cache = DynamicCache(config=self._plain.config)
            self.logits = self._read(ids.repeat_interleave(copies, dim=0))

    def select(self, keep: Tensor) -> None:
        """Only the rows `keep` stay."""
        self._cache.batch_select_indices(keep)
        self._positions = self._positions[keep]
        if self._ahead is not None:
            self._ahead = self._ahead[keep]
        if self._mask is not None:
            self._mask = self._mask[keep]

    def go_on(self, token: Tensor) -> None:
        """Reads one more token [R] per row."""
        self._positions = self._positions + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(token), 1)], dim=1)
        self.logits = self._read(token[:, None])

    def _read(self, ids: Tensor, shown: Mapping[str, Tensor] | None = None) -> Tensor:
        """[R, V] logits after the last of `ids`, which are added to the cache."""
        inputs: dict[str, Any] = dict(self._keeps_last)
        inputs |= {name: value.to(ids.device) for name, value in (shown or {}).items()}
        if self._takes_positions and self._positions is not None:
            ahead = self._ahead
            inputs["position_ids"] = (
                self._positions if ahead is None else (self._positions + ahead).expand(3, -1, -1)
            )
        return self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **inputs,
        ).logits[:, -1]
