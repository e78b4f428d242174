"""What the evaluation takes of the memory, by hand, and what the dry run says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MambaConfig

from align.app.check import check
from align.app.cost import Machine
from align.app.evaluation_cost import evaluation_memory
from align.app.memory import count_parameters, weight_bytes
from align.data.pairs import PreferencePair
from align.data.row_report import RowReport
from align.objectives import objective_from
from align.recipe import Data, Evaluate, Model, Recipe, Roles, Train
from align.tokens.encoding import encode_pairs
from align.tokens.tokenized_pair import TokenizedPair
from align.worlds.bytes import bytes_tokenizer

HIDDEN, LAYERS, VOCABULARY = 8, 2, 100
PAIR = PreferencePair(prompt="p", chosen="c", rejected="r", source="rows.jsonl", row=1)
# Prompt, chosen, rejected: 15, 30 and 24 tokens with the prompt once; padded 20, 40 and 30.
PAIRS = [
    TokenizedPair([1] * prompt, [2] * chosen, [3] * rejected, PAIR)
    for prompt, chosen, rejected in ((5, 5, 5), (10, 10, 10), (6, 9, 9))
]
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    intermediate_size=16,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
)
LAYER = 34 * HIDDEN * 2  # bytes a token of one layer, in float32


def recipe(suite: Any = ("preference",), model: Any = None, **train: Any) -> Recipe:
    return Recipe(
        model=Model(model_name_or_path="a/b", **(model or {})),
        roles=Roles(reference="start"),
        data=Data(pairs="rows.jsonl"),
        objective=objective_from({"name": "dpo"}),
        train=Train(**train),
        evaluate=Evaluate(suite=suite),
    )


def estimated(of: Recipe, config: Any = LLAMA, pairs: Any = PAIRS) -> Any:
    return evaluation_memory(of, pairs, count_parameters(of, config), config)


@pytest.mark.parametrize(
    ("train", "tokens"),
    [
        ({}, 15 + 30 + 24),
        ({"per_device_eval_batch_size": 2}, 30 + 24),
        ({"token_budget": "auto", "per_device_eval_batch_size": 1}, 30),
        ({"token_budget": 40, "per_device_eval_batch_size": 1}, 40),
        # The longest pair is never cut, and there is no more than all of them.
        ({"token_budget": 16}, 30),
        ({"token_budget": 1000}, 15 + 30 + 24),
    ],
    ids=str,
)
def test_tokens_of_the_fullest_pass(train: dict[str, Any], tokens: int) -> None:
    found = estimated(recipe(**train))
    assert found.activations == tokens * LAYER
    # Only completions are scored: 10 + 20 + 18 of them.
    assert found.head == min(tokens, 48) * VOCABULARY * 2 * 4
    assert (found.gradients, found.optimizer) == (0, 0)


def test_types_and_adapters() -> None:
    assert estimated(recipe()).weights == 4 * count_parameters(recipe(), LLAMA).total
    half = estimated(recipe(model={"dtype": "bfloat16"}))
    assert half.weights == estimated(recipe()).weights / 2
    assert half.activations == estimated(recipe()).activations / 2
    # What is multiplied in half precision while training is not while measuring.
    assert estimated(recipe(bf16=True)).activations == estimated(recipe()).activations
    lora = recipe(model={"use_peft": True, "lora_r": 4})
    parameters = count_parameters(lora, LLAMA)
    assert estimated(lora).weights == weight_bytes(lora, parameters, LLAMA)


def test_a_second_model_only_where_its_weights_are_read() -> None:
    one = estimated(recipe()).weights
    assert estimated(recipe(["preference", "sums"])).weights == 2 * one
    lora = {"use_peft": True}
    with_adapter = estimated(recipe(model=lora)).weights
    assert estimated(recipe(["preference", "sums"], model=lora)).weights == with_adapter
    assert estimated(recipe(["sums"]), pairs=[]).activations == 0
    assert estimated(recipe([])) is None
    assert estimated(recipe(), pairs=[]) is None


def test_rows_that_are_padded_have_all_their_logits() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS)
    found = estimated(recipe(per_device_eval_batch_size=2), config)
    # Two pairs as long as the longest: 2 x 2 x 20 slots, and 48 of their tokens are scored.
    assert found.activations == 80 * LAYER
    assert found.head == VOCABULARY * (80 * 4 + 48 * 8)


def test_what_the_dry_run_says() -> None:
    tokenizer = bytes_tokenizer(512)
    texts = PreferencePair(prompt="Why?", chosen="so", rejected="no", source="x.jsonl", row=1)
    pairs = encode_pairs([texts] * 2, tokenizer, Data(pairs="x.jsonl"), RowReport())
    config = LlamaConfig(**(LLAMA.to_dict() | {"vocab_size": len(tokenizer)}))
    roomy = Machine(10**12, 10**12, "this machine", program=500_000_000)

    def said(machine: Machine, held_out: Any) -> Any:
        return check(
            recipe(per_device_train_batch_size=1),
            train=pairs,
            held_out=held_out,
            report=RowReport(read=2, kept=2),
            tokenizer=tokenizer,
            model_config=config,
            run_dir=Path("outputs/x"),
            machine=machine,
        )

    report = said(roomy, pairs)
    assert report.evaluating is not None
    assert report.evaluating.total < report.memory.total
    lines = str(report).splitlines()
    (line,) = [line for line in lines if line.startswith("evaluation: about 500 MB per device (")]
    assert line.endswith("program 500 MB)")
    assert any(line.startswith("memory: about 500 MB per device (") for line in lines)
    assert "evaluation:" not in str(said(roomy, []))
    between = replace(roomy, free_memory=report.evaluating.total - 1)
    (warning,) = [w for w in said(between, pairs).warnings if w.startswith("evaluation:")]
    assert "lower train.token_budget" in warning
    assert not [w for w in report.warnings if "free on" in w]
