"""A causal language model in this process: who it is, and its reading of a batch with a cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from align.reference import digest, tokenizer_digest, weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


class LoadedModel:
    """A model with its tokenizer, and what must be known about its forward pass once.

    Args:
        model: on its device; it may be trained between calls, and `identity` notices.
        tokenizer: of the model; its processor where it reads pictures.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._known: tuple[list[int], str] | None = None
        wrapped: Any = model
        self.plain: Any = wrapped.get_base_model() if hasattr(model, "peft_config") else model
        forward = inspect.signature(self.plain.forward).parameters
        self.takes_positions = "position_ids" in forward
        # Qwen-VL counts a picture's places along its sides, from the pictures themselves.
        self.places_pictures = hasattr(getattr(self.plain, "model", None), "get_rope_index")
        self.keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    @property
    def identity(self) -> str:
        """16 hex digits over weights and tokenizer; hashed anew after the weights have changed."""
        # A fused optimizer does not raise the tensors' versions, so their bits are summed up.
        values = self.model.state_dict().values()
        state = [_bit_sum(value) for value in values if isinstance(value, Tensor)]
        if self._known is None or self._known[0] != state:
            reader: Any = self.tokenizer
            parts = [weights_digest(self.model), tokenizer_digest(reader)]
            self._known = (state, digest(parts)[:16])
        return self._known[1]

    @property
    def longest(self) -> int:
        """Tokens that the model's context holds."""
        config: Any = self.plain.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or 2**31

    @property
    def ends(self) -> int | Sequence[int] | None:
        """End tokens of the model's generation config."""
        return getattr(self.plain.generation_config, "eos_token_id", None)


class Reading:
    """A batch of samples that the model has read so far; prompts are padded on the left.

    Args:
        loaded: the model, which the caller has put in eval mode.
        prompts: token ids, none empty; each is read once.
        copies: samples of each prompt, side by side in this order.
        pictures: token ids [R, S] of the prompts as padded -> what the model reads beside them.

    Attributes:
        logits: [R, V] after the last token of every row.
        can_select: whether rows can be repeated and taken out; recurrent layers offer neither.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Sequence[int]],
        copies: Sequence[int],
        pictures: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._loaded = loaded
        device = loaded.model.device
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        # Without padding no mask is given, and attention is at its fastest.
        self._mask = mask if any(len(p) < width for p in prompts) else None
        # None while the model counts them itself.
        self._positions: Any = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=loaded.plain.config)
        # [R, 1] by how much a row's places run ahead of its tokens; None where they do not.
        self._ahead: Tensor | None = None
        if pictures is not None and loaded.places_pictures:
            self._positions = None
            self.logits = self._read(ids, pictures(ids))
            self._ahead = loaded.plain.model.rope_deltas
            # Nobody else is to go on from this batch.
            loaded.plain.model.rope_deltas = None
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
            self._cache = DynamicCache(config=self._loaded.plain.config)
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
        inputs: dict[str, Any] = dict(self._loaded.keeps_last)
        inputs |= {name: value.to(ids.device) for name, value in (shown or {}).items()}
        if self._loaded.takes_positions and self._positions is not None:
            ahead = self._ahead
            inputs["position_ids"] = (
                self._positions if ahead is None else (self._positions + ahead).expand(3, -1, -1)
            )
        model: Any = self._loaded.model
        return model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **inputs,
        ).logits[:, -1]


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """[R, steps] float64 in [0, 1), a stream of its own for every row."""
    streams = [
        torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(streams)


def _bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, 64 or 8 at a time, modulo 2^64: read far faster than hashed."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0
    return int((flat.view(torch.int64) if whole else flat).sum(dtype=torch.int64))
