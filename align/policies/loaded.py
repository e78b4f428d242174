"""A causal language model in this process: who it is, and how it is kept as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.reference import digest, tokenizer_digest, weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Dropout off and no gradient; every submodule's own training mode is put back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def plain_model(model: PreTrainedModel) -> Any:
    """The model itself where adapters are wrapped around it."""
    wrapped: Any = model
    # Not `peft_config`: the inner model of a wrapped one has that too.
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else model


class LoadedModel:
    """A model with its tokenizer: who they are together, and what bounds an answer.

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
        self.plain = plain_model(model)

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


def _bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, 64 or 8 at a time, modulo 2^64: read far faster than hashed."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0
    return int((flat.view(torch.int64) if whole else flat).sum(dtype=torch.int64))
