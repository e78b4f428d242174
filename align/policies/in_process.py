"""Any causal language model of transformers, in this process.

Each prompt is read once, whatever the number of samples: its key-value cache is repeated, and rows
that have ended leave the batch. Every draw is the inverse of the cumulative distribution at a
uniform number that belongs to (seed, prompt id, sample index, step) and to nothing else, so a
sample does not depend on which rows share its batch, save where two batches round a probability
apart across the very edge that the number falls on: about once in 10^6 tokens in float32, often in
bfloat16. The same call on the same machine gives the same samples in every dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from align.forest import TokenRow, score_rows
from align.policies.base import Capabilities, Failed, Sampling, sample_seed
from align.policies.drawing import draw
from align.policies.prompting import Begun, End, Ends, Prompting
from align.records import Completion, Prompt
from align.reference import digest, tokenizer_digest, weights_digest
from align.types import Logps
from align.worlds.generation import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Ended rows leave the batch once they are one of so many: leaving copies the cache.
LEAVING = 8


@dataclass
class _Row:
    """One sample on its way.

    Attributes:
        prompt: number of its prompt.
        sample: number of the continuation.
        ids: drawn so far, without the token that ended them.
        end: how it ended; None while it goes on.
    """

    prompt: int
    sample: int
    ids: list[int]
    end: End | None = None


class InProcessPolicy:
    """A loaded model as a policy; model and random state are left as they were found.

    Args:
        model: on its device; it may be trained between calls, and `identity` notices.
        tokenizer: of the model.
        rows: samples of one forward pass.
    """

    capabilities = Capabilities(logps=True, reproducible=True)

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, rows: int = 128
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows must be 1 or more, not {rows}.")
        self.model = model
        self.tokenizer = tokenizer
        self.rows = rows
        self._prompting = Prompting(tokenizer)
        self._known: tuple[list[int], str] | None = None
        wrapped: Any = model
        self._plain: Any = wrapped.get_base_model() if hasattr(model, "peft_config") else model
        forward = inspect.signature(self._plain.forward).parameters
        self._takes_positions = "position_ids" in forward
        self._keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    @property
    def identity(self) -> str:
        """16 hex digits over weights and tokenizer; hashed anew after the weights have changed."""
        # A fused optimizer does not raise the tensors' versions, so their bits are summed up.
        values = self.model.state_dict().values()
        state = [_bit_sum(value) for value in values if isinstance(value, Tensor)]
        if self._known is None or self._known[0] != state:
            parts = [weights_digest(self.model), tokenizer_digest(self.tokenizer)]
            self._known = (state, digest(parts)[:16])
        return self._known[1]

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Log-probs [nats] of the completion tokens of every row, on the CPU."""
        return score_rows(self.model, rows)

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """`n` samples of every prompt: outer list in the order of the prompts, inner by sample.

        Of the model's generation config only the end tokens are used.

        Raises:
            DataError: no such prompt can be used with this tokenizer.
        """
        if n < 1:
            raise ValueError(f"n must be 1 or more, not {n}.")
        config: Any = self._plain.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or 2**31
        begun = self._prompting.begin(prompts, n, sampling, longest)
        named = getattr(self._plain.generation_config, "eos_token_id", None)
        ends = self._prompting.ends(begun, named, sampling)
        identity = self.identity
        with evaluating(self.model):
            for batch in self._batches(begun, n):
                uniform = _uniforms(batch, prompts, sampling, seed).to(self.model.device)
                self._continue(batch, begun, uniform, sampling, ends)
                for row in batch:
                    begun.results[row.prompt].append(
                        self._prompting.written(
                            prompts[row.prompt],
                            row.sample,
                            row.ids,
                            row.end,
                            behind=begun.ids[row.prompt][-1],
                            sampling=sampling,
                            identity=identity,
                        )
                    )
        return begun.results

    def _batches(self, begun: Begun, n: int) -> list[list[_Row]]:
        """Rows by length of their prompts, the samples of one prompt together and in order."""
        order = sorted(begun.ids, key=lambda number: len(begun.ids[number]))
        per_batch = max(self.rows // n, 1)
        return [
            [
                _Row(number, sample, [])
                for number in order[start : start + per_batch]
                for sample in range(first, min(first + self.rows, n))
            ]
            for start in range(0, len(order), per_batch)
            for first in range(0, n, self.rows)
        ]

    def _continue(
        self, batch: list[_Row], begun: Begun, uniform: Tensor, sampling: Sampling, ends: Ends
    ) -> None:
        """Draws every row of `batch` to its end."""
        prompts = [begun.ids[number] for number in dict.fromkeys(row.prompt for row in batch)]
        reading = _Reading(self, prompts, samples=len(batch) // len(prompts))
        going = list(range(len(batch)))
        for step in range(sampling.max_new_tokens):
            token = draw(reading.logits, uniform[going, step], sampling)
            for at, drawn in zip(going, token.tolist(), strict=True):
                self._append(batch[at], drawn, ends, begun)
            left = [k for k, at in enumerate(going) if batch[at].end is None]
            if not left or step + 1 == sampling.max_new_tokens:
                return
            if (len(going) - len(left)) * LEAVING >= len(going) and reading.can_select:
                going = [going[k] for k in left]
                keep = torch.tensor(left, device=token.device)
                reading.select(keep)
                token = token[keep]
            reading.go_on(token)

    def _append(self, row: _Row, drawn: int, ends: Ends, begun: Begun) -> None:
        if row.end is not None:
            return
        if drawn in ends.whole:
            row.end = "end"
        elif drawn in ends.control:
            row.end = "control"
        else:
            row.ids.append(drawn)
            if ends.stop and self._stops(row, ends.stop, begun.ids[row.prompt][-1]):
                row.end = "stop"

    def _stops(self, row: _Row, stop: Sequence[str], behind: int) -> bool:
        """Whether the last token completed a stop text."""
        # A token may be less than a character, so more tokens are looked at than the text has.
        window = 4 * max(map(len, stop)) + 8
        ids = row.ids[-window:]
        before = behind if len(ids) == len(row.ids) else row.ids[-window - 1]
        text = self._prompting.text(ids, before)
        return any(one in text for one in stop)


class _Reading:
    """A batch of samples that the model has read so far; prompts are padded on the left.

    Attributes:
        logits: [R, V] after the last token of every row.
        can_select: whether rows can be repeated and taken out; recurrent layers offer neither.
    """

    def __init__(self, policy: InProcessPolicy, prompts: list[list[int]], samples: int) -> None:
        self._policy = policy
        device = policy.model.device
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        # Without padding no mask is given, and attention is at its fastest.
        self._mask = mask if any(len(p) < width for p in prompts) else None
        self._positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=policy._plain.config)
        self.logits = self._read(ids)
        self.can_select = all(hasattr(x, "batch_select_indices") for x in self._cache.layers)
        if samples > 1:
            self._repeat(ids, samples)
        self._positions = self._positions[:, -1:]

    def _repeat(self, ids: Tensor, samples: int) -> None:
        self._positions = self._positions.repeat_interleave(samples, dim=0)
        if self._mask is not None:
            self._mask = self._mask.repeat_interleave(samples, dim=0)
        if self.can_select:
            self._cache.batch_repeat_interleave(samples)
            self.logits = self.logits.repeat_interleave(samples, dim=0)
        else:
            self._cache = DynamicCache(config=self._policy._plain.config)
            self.logits = self._read(ids.repeat_interleave(samples, dim=0))

    def select(self, keep: Tensor) -> None:
        """Only the rows `keep` stay."""
        self._cache.batch_select_indices(keep)
        self._positions = self._positions[keep]
        if self._mask is not None:
            self._mask = self._mask[keep]

    def go_on(self, token: Tensor) -> None:
        """Reads one more token [R] per row."""
        self._positions = self._positions + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(token), 1)], dim=1)
        self.logits = self._read(token[:, None])

    def _read(self, ids: Tensor) -> Tensor:
        """[R, V] logits after the last of `ids`, which are added to the cache."""
        inputs: dict[str, Any] = dict(self._policy._keeps_last)
        if self._policy._takes_positions:
            inputs["position_ids"] = self._positions
        model: Any = self._policy.model
        return model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **inputs,
        ).logits[:, -1]


def _bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, 64 or 8 at a time, modulo 2^64: read far faster than hashed."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0
    return int((flat.view(torch.int64) if whole else flat).sum(dtype=torch.int64))


def _uniforms(
    batch: Sequence[_Row], prompts: Sequence[Prompt], sampling: Sampling, seed: int
) -> Tensor:
    """[R, T] float64 in [0, 1), a stream of its own for every row."""
    streams: list[Tensor] = []
    for row in batch:
        own = torch.Generator().manual_seed(sample_seed(seed, prompts[row.prompt], row.sample))
        streams.append(torch.rand(sampling.max_new_tokens, generator=own, dtype=torch.float64))
    return torch.stack(streams)
