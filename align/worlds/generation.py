"""Batched sampling from a causal language model with a key-value cache.

Every draw is the inverse of the cumulative distribution at a uniform number that belongs to (row,
step) and to nothing else: which rows share a batch changes no sample, and the caller's random state
is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Sample:
    """One sampled completion.

    Attributes:
        completion_ids: token ids, the end token included where it was drawn.
        finished: an end token was drawn within the allowed number of tokens.
    """

    completion_ids: tuple[int, ...]
    finished: bool


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
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


def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 512,
) -> list[Sample]:
    """One completion per prompt, in the order of the prompts; repeat a prompt for more of them.

    Args:
        model: left as it was found: training mode, gradients, random state.
        prompts: token ids, generation prompt included; lengths may differ.
        end_ids: ids that end a completion.
        max_new_tokens: a completion that reaches it without an end token is not `finished`.
        temperature: 0 takes the likeliest token.
        seed: of the uniform numbers, drawn on the CPU for all rows at once.
        batch_size: rows of one forward pass; it does not change the result.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise ValueError("sample_completions needs at least one prompt, and no empty one.")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}.")
    generator = torch.Generator().manual_seed(seed)
    # [R, T] float64: 24-bit uniforms would tie with a cumulative sum now and then.
    uniform = torch.rand(len(prompts), max_new_tokens, generator=generator, dtype=torch.float64)
    with evaluating(model):
        return [
            sample
            for start in range(0, len(prompts), batch_size)
            for sample in _sample_batch(
                model,
                prompts[start : start + batch_size],
                uniform[start : start + batch_size].to(model.device),
                torch.tensor(list(end_ids), device=model.device),
                temperature,
            )
        ]


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor,
    end_ids: Tensor,
    temperature: float,
) -> list[Sample]:
    """One batch; prompts are padded on the left, where the attention mask hides them."""
    width = max(len(prompt) for prompt in prompts)
    device = model.device
    input_ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    attention = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
    )
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    drawn: list[Tensor] = []
    for step in range(uniform.shape[1]):
        logits = model(
            input_ids=input_ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # [B, V]
        token = _draw(logits, uniform[:, step], temperature)
        drawn.append(token)
        lengths += ~finished
        finished |= torch.isin(token, end_ids)
        if bool(finished.all()):
            break
        input_ids = token[:, None]
        attention = torch.cat([attention, attention.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    rows = torch.stack(drawn, dim=1).tolist()
    return [
        Sample(tuple(row[:length]), end)
        for row, length, end in zip(rows, lengths.tolist(), finished.tolist(), strict=True)
    ]


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """[B] token ids."""
    if temperature == 0:
        return logits.argmax(dim=1)
    cumulative = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return token.squeeze(1).clamp(max=logits.shape[1] - 1)
