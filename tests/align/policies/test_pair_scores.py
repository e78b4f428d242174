"""Scores of pairs: the padded rows' own numbers, each pair computed once, within the budget."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
)

from align.errors import MachineError
from align.forest import PADDED, TREE, TokenRow, score_rows
from align.forest.budget import SAFE_SHARE
from align.policies import pair_scores
from align.policies.pair_scores import backend_for, score_pairs
from align.tokens.vision.columns import Shown
from align.tokens.vision.pixels import pictures_of
from align.types import Logps, Pair
from tests.align.trainers import vision_in_code

VOCABULARY = 60


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        # Far from uniform, so that context matters.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def some_rows() -> Pair[list[TokenRow]]:
    """Twelve pairs; prompts of 12 to 30 tokens, the first two shared by three pairs each."""
    source = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [source.randrange(3, VOCABULARY) for _ in range(source.randint(low, high))]

    prompts = [ids(12, 30) for _ in range(8)]
    prompts += [prompts[0], prompts[1]] * 2
    # Completions begin differently, so prompts are all that is shared.
    return Pair(
        [TokenRow(prompt, [3 + i, *ids(0, 8)]) for i, prompt in enumerate(prompts)],
        [TokenRow(prompt, [30 + i, *ids(0, 8)]) for i, prompt in enumerate(prompts)],
    )


ROWS = some_rows()
UNIQUE = sum(len(p) for p in {tuple(r.prompt_ids) for r in ROWS.chosen}) + sum(
    len(row.completion_ids) for side in (ROWS.chosen, ROWS.rejected) for row in side
)


def padded(model: Any, rows: Pair[list[TokenRow]] = ROWS, **options: Any) -> Pair[Logps]:
    """By the model's own forward pass over padded rows."""
    return Pair(score_rows(model, rows.chosen, **options), score_rows(model, rows.rejected))


def scored(model: Any, backend: Any = None, **limits: Any) -> Pair[Logps]:
    backend = backend or backend_for(model, ROWS)
    return score_pairs(
        model, ROWS, backend, **({"pairs_at_once": 4, "token_budget": None} | limits)
    )


def assert_equal(found: Pair[Logps], expected: Pair[Logps], atol: float = 1e-5) -> None:
    for ours, theirs in ((found.chosen, expected.chosen), (found.rejected, expected.rejected)):
        assert ours.token.dtype == theirs.token.dtype
        assert torch.equal(ours.mask, theirs.mask)
        torch.testing.assert_close(ours.token, theirs.token, atol=atol, rtol=0)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward pass of `score_pairs`, padding included; the check's are not there."""
    seen: list[int] = []
    edges = pair_scores._Scoring._edges

    def counted(self: Any, pack: Any, pairs: Any) -> Any:
        seen.append(pack.computed_tokens)
        return edges(self, pack, pairs)

    monkeypatch.setattr(pair_scores._Scoring, "_edges", counted)
    return seen


@pytest.mark.parametrize("limits", [{}, {"token_budget": 80}, {"token_budget": "auto"}], ids=str)
@pytest.mark.parametrize("backend", [TREE, PADDED], ids=lambda one: one.name)
def test_the_numbers_are_those_of_padded_rows(backend, limits) -> None:
    model = llama()
    assert_equal(scored(model, backend, **limits), padded(model))


def test_numbers_of_other_types_keep_their_width() -> None:
    double = scored(llama(torch.float64))
    assert double.chosen.token.dtype == torch.float64
    assert_equal(double, padded(llama(torch.float64)), atol=1e-12)
    assert scored(llama(torch.bfloat16)).chosen.token.dtype == torch.float32


def test_every_prefix_is_computed_once(passes) -> None:
    model = llama()
    read: list[int] = []
    backend = backend_for(model, ROWS)
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: read.append(inputs[0].numel())
    )
    scored(model, backend, token_budget=10_000)
    hook.remove()
    assert read == passes == [UNIQUE]


def test_a_number_of_tokens_bounds_every_pass(passes) -> None:
    longest = max(
        len(c) + len(r.completion_ids) for c, r in zip(ROWS.chosen, ROWS.rejected, strict=True)
    )
    for budget in (longest, 100):
        passes.clear()
        scored(llama(), TREE, token_budget=budget)
        assert max(passes) <= budget
    # The two prompts with three pairs each fit, so every prompt is read once.
    assert sum(passes) == UNIQUE


def test_without_a_budget_a_pass_holds_so_many_pairs(passes) -> None:
    scored(llama(), TREE, pairs_at_once=4)
    assert len(passes) == 3
    scored(llama(), TREE, pairs_at_once=5)
    assert len(passes) == 3 + 3
    # Neighbours share their prompt.
    assert sum(passes[:3]) < 1.25 * UNIQUE


class Memory:
    """Passes take 1,000 bytes a token; those after one of `wall` tokens fail, once."""

    def __init__(self, monkeypatch: Any, free: int, passes: list[int], wall: int = 10**6) -> None:
        def peak_of(work: Any, device: Any) -> int | None:
            if passes and passes[-1] >= wall and not self.failed:
                self.failed = 1
                return None
            work()
            return 1_000 * passes[-1]

        self.failed = 0
        monkeypatch.setattr(pair_scores, "peak_of", peak_of)
        monkeypatch.setattr(pair_scores, "free_memory", lambda device: free)


def test_auto_takes_what_fits_and_computes_nothing_twice(passes, monkeypatch) -> None:
    room = 90
    Memory(monkeypatch, int(1_000 * room / SAFE_SHARE) + 1, passes)
    model = llama()
    assert_equal(scored(model, TREE, token_budget="auto", pairs_at_once=12), padded(model))
    assert max(passes) <= room
    # It begins with the longest pair and grows from there.
    assert passes[0] < 50
    assert max(passes) > 50
    assert sum(passes) <= 1.3 * UNIQUE


def test_auto_asks_for_no_more_than_its_batch(passes, monkeypatch) -> None:
    Memory(monkeypatch, 10**12, passes)
    scored(llama(), TREE, token_budget="auto", pairs_at_once=1)
    assert len(passes) >= 8
    passes.clear()
    scored(llama(), TREE, token_budget="auto", pairs_at_once=12)
    assert len(passes) < 8


def test_a_pass_that_failed_for_memory_is_made_smaller(passes, monkeypatch) -> None:
    memory = Memory(monkeypatch, 10**12, passes, wall=40)
    model = llama()
    assert_equal(scored(model, TREE, token_budget="auto", pairs_at_once=12), padded(model))
    assert memory.failed == 1


def test_a_pair_that_does_not_fit_is_said(monkeypatch) -> None:
    monkeypatch.setattr(pair_scores, "free_memory", lambda device: 0)
    with pytest.raises(MachineError, match=r"longest held-out pair \(\d+ tokens\) does not fit"):
        scored(llama(), TREE, token_budget="auto")


def test_a_family_that_cannot_share_is_padded_and_it_is_said_once(caplog, monkeypatch) -> None:
    pair_scores._warn.cache_clear()
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    with caplog.at_level(logging.WARNING, logger="align"):
        found = [scored(model, token_budget=200) for _ in range(2)]
    said = [record.message for record in caplog.records if record.name == "align"]
    assert said == [
        "Log-probs are computed by padded rows, because MambaForCausalLM does not look its "
        "attention up in transformers' interface."
    ]
    assert_equal(found[0], padded(model))
    assert torch.equal(found[0].chosen.token, found[1].chosen.token)


def test_a_head_that_its_config_does_not_tell_of_is_the_models_own() -> None:
    class Sharper(LlamaForCausalLM):
        def forward(self, *args: Any, **inputs: Any) -> Any:
            output = super().forward(*args, **inputs)
            output.logits = output.logits * 3
            return output

    model = Sharper(llama().config).eval()
    assert backend_for(model, ROWS) is PADDED
    assert_equal(scored(model), padded(model))


def test_pairs_with_pictures(tmp_path: Path) -> None:
    folder = vision_in_code.llava(tmp_path / "llava")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    images = [str(tmp_path / f"{colour}.png") for colour in vision_in_code.COLOURS]
    for colour, image in zip(vision_in_code.COLOURS, images, strict=True):
        vision_in_code.square(colour).save(image)
    known = processor.tokenizer.get_vocab()
    prompt = [known["<s>"], *[known["<image>"]] * 4, known["what"], known["colour"], known["?"]]
    rows = Pair(
        [TokenRow(prompt, [known[w], known["</s>"]]) for w in ("red", "green", "blue")],
        [TokenRow(prompt, [known["very"], known[w], known["</s>"]]) for w in ("grey",) * 3],
    )
    shown = Pair(
        [Shown((image,)) for image in images[:3]], [Shown((image,)) for image in images[1:4]]
    )
    backend = backend_for(model, rows)
    assert backend is PADDED
    found = score_pairs(
        model,
        rows,
        backend,
        pairs_at_once=2,
        token_budget=None,
        pictures=pictures_of(processor, [*shown.chosen, *shown.rejected]),
    )
    expected = Pair(
        score_rows(model, rows.chosen, pictures=pictures_of(processor, shown.chosen)),
        score_rows(model, rows.rejected, pictures=pictures_of(processor, shown.rejected)),
    )
    assert_equal(found, expected)
    # The pictures matter: without an exchange, those of another pair would go unseen.
    swapped = score_rows(model, rows.chosen, pictures=pictures_of(processor, shown.rejected))
    assert (swapped.token - expected.chosen.token).abs().max() > 1e-3


def test_the_model_is_left_as_it_was_found() -> None:
    model = llama().train()
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    forward = model.forward
    scored(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.model.layers[0].training
    assert model.forward == forward
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_row_without_tokens_is_refused() -> None:
    rows = Pair([*ROWS.chosen[:2]], [ROWS.rejected[0], TokenRow([3, 4], [])])
    with pytest.raises(ValueError, match=r"pair 1 .*: rejected has no prompt or no completion"):
        score_pairs(llama(), rows, TREE, pairs_at_once=2, token_budget=None)
