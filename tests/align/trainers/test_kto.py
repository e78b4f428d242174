"""Where `trl.KTOTrainer` stands: its trajectory, rows and settings; and one KL term a step."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from align.data.formats.groups import groups_from_rows
from align.data.row_policy import RowPolicy
from align.errors import DataError, RecipeError
from align.objectives import KTO
from align.trainers import GroupConfig, GroupTrainer, KTOConfig, KTOTrainer
from align.trainers.kto import unbalanced
from align.trainers.mismatched import mismatched_ids
from tests.align.trainers.groups_in_code import settings

WORDS = "abcdefghijklmnopqrstuvwxyz"
STEPS = 6
# Logged by TRL as means over a step of one micro-batch.
RECORDED = (
    *("loss", "grad_norm", "kl", "entropy", "num_tokens"),
    *(f"{n}/{side}" for n in ("rewards", "logps", "logits") for side in ("chosen", "rejected")),
    "rewards/margins",
)


def some_rows(n: int = 18) -> Dataset:
    """N rows of text in TRL's unpaired format, two thirds of them desirable."""
    generator = torch.Generator().manual_seed(0)

    def words(low: int, high: int) -> str:
        size = int(torch.randint(low, high, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, 26, (size,), generator=generator))

    return Dataset.from_list(
        [
            {"prompt": words(3, 9), "completion": f" {words(2, 9)}", "label": bool(i % 3)}
            for i in range(n)
        ]
    )


def some_pairs(n: int) -> Dataset:
    """The rows of text as pairs, whose rejected side says one word more."""
    rows = some_rows(n)
    return Dataset.from_dict(
        {
            "prompt": rows["prompt"],
            "chosen": rows["completion"],
            "rejected": [f" {text} x" for text in rows["completion"]],
        }
    )


def kto(out: Path, kind: Any = KTOConfig, **changes: Any) -> Any:
    own = {"max_steps": STEPS, "per_device_train_batch_size": 4, "beta": 0.3}
    return kind(**settings(str(out), **(own | changes)))


def records(trainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.fixture
def built(tiny_folder, tiny_tokenizer, tmp_path):
    def build(rows: Dataset | None = None, args: Any = None, **given: Any) -> KTOTrainer:
        changes = given.pop("changes", {})
        dtype = given.pop("dtype", torch.float64)
        return KTOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype),
            args=args or kto(tmp_path / "out", **changes),
            train_dataset=some_rows() if rows is None else rows,
            processing_class=tiny_tokenizer,
            **given,
        )

    return build


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_same_trajectory_as_trl(loss_type, adapter, tiny_folder, tiny_tokenizer, tmp_path) -> None:
    """From rows of text, the last batch of each epoch being half as long."""
    common: dict[str, Any] = {
        "train_dataset": some_rows(),
        "eval_dataset": some_rows(4),
        "processing_class": tiny_tokenizer,
    }
    if adapter == "lora":
        common["peft_config"] = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    own = {"desirable_weight": 0.7, "loss_type": loss_type, "per_device_eval_batch_size": 4}
    theirs = trl.KTOTrainer(tiny_folder, args=kto(tmp_path / "trl", trl.KTOConfig, **own), **common)
    ours = KTOTrainer(tiny_folder, args=kto(tmp_path / "ours", **own), **common)
    for trainer in (theirs, ours):
        trainer.train()
    assert len(records(ours)) == STEPS
    for step, (mine, trls) in enumerate(zip(records(ours), records(theirs), strict=True)):
        for name in set(RECORDED) - ({"kl"} if loss_type != "kto" else set()):
            assert (name in mine) == (name in trls), (step, name)
            if name in trls:
                assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), (step, name)
    assert any(abs(row.get("rewards/margins", 0.0)) > 1e-4 for row in records(ours))
    if loss_type == "kto":
        assert any(row["kl"] > 1e-3 for row in records(ours)), "the clamp hides everything"
        assert any(row["kl"] == 0.0 for row in records(ours)[1:]), "nothing was clamped"
    # One batch is all rows, so the evaluations are the same too.
    wanted, found = theirs.evaluate(), ours.evaluate()
    for name in ("eval_loss", "eval_rewards/chosen", "eval_logps/rejected"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-5, rel=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [
        {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
    ],
    ids=["precomputed", "renewed"],
)
def test_the_reference_is_had_as_trl_has_it(changes, tiny_folder, tiny_tokenizer, tmp_path) -> None:
    common = {"train_dataset": some_rows(), "processing_class": tiny_tokenizer}
    theirs = trl.KTOTrainer(
        tiny_folder, args=kto(tmp_path / "trl", trl.KTOConfig, **changes), **common
    )
    ours = KTOTrainer(tiny_folder, args=kto(tmp_path / "ours", **changes), **common)
    for trainer in (theirs, ours):
        trainer.train()
    found, wanted = ([row["loss"] for row in records(one)] for one in (ours, theirs))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(set(found)) == STEPS


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("form", ["rows", "pairs"])
def test_a_stream_has_trls_trajectory(
    form, loss_type, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    """Over an epoch's end, whose last block is half as long; and so is its evaluation."""
    rows = some_rows() if form == "rows" else some_pairs(9)
    common: dict[str, Any] = {"processing_class": tiny_tokenizer}
    own = {"loss_type": loss_type, "per_device_eval_batch_size": 4}
    made = []
    for trainer, config in ((trl.KTOTrainer, trl.KTOConfig), (KTOTrainer, KTOConfig)):
        stream, held_out = rows.to_iterable_dataset(), some_rows(4).to_iterable_dataset()
        args = kto(tmp_path / trainer.__module__, config, **own)
        given = {"train_dataset": stream, "eval_dataset": held_out, **common}
        made.append(trainer(tiny_folder, args=args, **given))
        made[-1].train()
    theirs, ours = made
    assert len(records(ours)) == STEPS
    for step, (mine, trls) in enumerate(zip(records(ours), records(theirs), strict=True)):
        for name in set(RECORDED) - ({"kl"} if loss_type != "kto" else set()):
            assert (name in mine) == (name in trls), (step, name)
            if name in trls:
                assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), (step, name)
    if loss_type == "kto":
        assert any(row["kl"] > 1e-3 for row in records(ours)), "the clamp hides everything"
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], abs=1e-5)


def test_rows_without_a_prompt_are_trained_on_as_in_trl(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    """Their first token is context, of the mismatched completions too."""
    rows = some_rows().to_list()
    rows = [row | ({} if i % 3 else {"prompt": ""}) for i, row in enumerate(rows)]
    common = {"train_dataset": Dataset.from_list(rows), "processing_class": tiny_tokenizer}
    theirs = trl.KTOTrainer(tiny_folder, args=kto(tmp_path / "trl", trl.KTOConfig), **common)
    ours = KTOTrainer(tiny_folder, args=kto(tmp_path / "ours"), **common)
    for trainer in (theirs, ours):
        trainer.train()
    assert sum(not ids for ids in ours.train_dataset["prompt_ids"]) == 6
    for mine, trls in zip(records(ours), records(theirs), strict=True):
        for name in ("loss", "grad_norm", "kl", "entropy", "num_tokens"):
            assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), name


def test_a_block_of_a_stream_is_of_the_rows_that_are_left(built, caplog) -> None:
    rows = some_rows(9).to_list()
    rows[1]["completion"] = "  "
    trainer = built(Dataset.from_list(rows).to_iterable_dataset(), changes={"max_steps": 2})
    with caplog.at_level(logging.WARNING):
        made = list(trainer.train_dataset)
    assert "Row 1 of the train data is left out" in caplog.text
    own = [row["completions_ids"] for row in made]
    assert [row["row_index"] % 2**40 for row in made] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert [row["mismatched_ids"] for row in made] == [own[i] for i in (3, 0, 1, 2, 7, 4, 5, 6)]


SPLITS = {
    "micro-batches": (3, 4, None),
    "packed": (12, 1, 60),
    "packed micro-batches": (4, 3, 40),
}


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        parameters = kwargs["model"].parameters()
        self.found.append(torch.cat([p.grad.flatten().clone() for p in parameters]))


@pytest.mark.parametrize("split", SPLITS)
def test_no_border_of_a_pass_moves_a_step(split, built, monkeypatch) -> None:
    """One KL term of twelve rows. TRL takes one per micro-batch."""
    original = mismatched_ids
    monkeypatch.setattr(
        "align.trainers.mismatched.mismatched_ids",
        lambda prompts, completions, block, limit: original(prompts, completions, 12, limit),
    )
    found = []
    for batch, accumulation, budget in ((12, 1, None), SPLITS[split]):
        look = Gradients()
        trainer = built(
            some_rows(24),
            callbacks=[look],
            changes={
                "max_steps": 3,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "token_budget": budget,
                "beta": 0.5,
            },
        )
        trainer.train()
        found.append((records(trainer), look.found))
    (wanted, gradients), (other, of_other) = found
    assert max(row["kl"] for row in wanted) > 1e-3
    for row, expected in zip(other, wanted, strict=True):
        for name in ("loss", "grad_norm", "kl", "rewards/margins"):
            assert row[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-7), name
    for one, expected in zip(of_other, gradients, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-7)


def test_the_step_is_measured_by_mismatched_leaves_alone(built, monkeypatch) -> None:
    """Without gradient, and of the rows' own completions only the pass with gradient."""
    made: list[tuple[bool, list[list[int]]]] = []
    trainer = built(changes={"max_steps": 1})
    original = type(trainer)._logps

    def noted(self, model, part, **asked):
        pack = part["pack"]
        targets = [
            pack.target[row[:n]].tolist() for row, n in zip(pack.index, pack.lengths, strict=True)
        ]
        made.append((torch.is_grad_enabled(), targets))
        return original(self, model, part, **asked)

    monkeypatch.setattr(type(trainer), "_logps", noted)
    trainer.train()
    own = [row[0] for row in trainer.train_dataset["completions_ids"][:4]]
    assert made == [(False, [own[3], own[0], own[1], own[2]]), (True, own)]


def test_an_evaluation_is_one_step_over_all_its_rows(built) -> None:
    """Of blocks of `per_device_train_batch_size`, whatever the evaluation's own batch is."""
    found = []
    for size, budget in ((13, None), (2, None), (5, 30)):
        changes = {"per_device_eval_batch_size": size, "token_budget": budget, "max_steps": 2}
        trainer = built(eval_dataset=some_rows(13), changes=changes)
        trainer.train()
        found.append(trainer.evaluate())
    assert found[0]["eval_kl"] > 0
    for other in found[1:]:
        for name in ("eval_loss", "eval_kl", "eval_rewards/margins"):
            assert other[name] == pytest.approx(found[0][name], rel=1e-6, abs=1e-7), name


def test_pairs_become_rows_in_trls_order(built, tiny_folder, tiny_tokenizer, tmp_path) -> None:
    pairs = some_pairs(10)
    theirs = trl.KTOTrainer(
        tiny_folder,
        args=kto(tmp_path / "trl", trl.KTOConfig),
        train_dataset=pairs,
        processing_class=tiny_tokenizer,
    ).train_dataset
    tokens = built(pairs).train_dataset
    for ours in (tokens, built(theirs.select_columns(TOKENS)).train_dataset):
        assert ours["prompt_ids"][:] == theirs["prompt_ids"][:]
        assert [row[0] for row in ours["completions_ids"]] == theirs["completion_ids"][:]
        assert [row[0] for row in ours["mismatched_ids"]] == theirs["KL_completion_ids"][:]
        assert [row[0] for row in ours["labels"]] == theirs["label"][:]


TOKENS = ["prompt_ids", "completion_ids", "label"]


def test_a_mismatched_leaf_is_the_completion_of_the_row_before() -> None:
    prompts = [[1], [2, 2], [3], [4], [5]]
    completions = [[[k] * (k + 1)] for k in range(5)]
    found = mismatched_ids(prompts, completions, 3, None)
    # Blocks of three rows, of which the last has two: each begins with its own last one.
    assert [row[0][0] for row in found] == [2, 0, 1, 4, 3]
    assert [len(row[0]) for row in found] == [3, 1, 2, 5, 4]
    cut = mismatched_ids(prompts, completions, 3, 4)
    # Row 0 is 1 + 1 tokens and may be 4: three are left. Row 4 is 1 + 5 itself.
    assert [len(row[0]) for row in cut] == [3, 1, 2, 4, 4]
    groups = mismatched_ids([[1], [2]], [[[7], [8], [9]], [[5], [6]]], 2, None)
    assert groups == [[[5], [6], [5]], [[7], [8]]]


def test_a_resumed_run_is_the_uninterrupted_one(built, tmp_path) -> None:
    class Killed(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    cut = {"changes": saving | {"output_dir": str(tmp_path / "cut")}}
    straight = built(changes=saving | {"output_dir": str(tmp_path / "straight")})
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        built(callbacks=[Killed()], **cut).train()
    resumed = built(**cut)
    resumed.train(resume_from_checkpoint=True)
    names = ("loss", "grad_norm", "kl")
    assert [[row[n] for n in names] for row in records(resumed)] == [
        [row[n] for n in names] for row in records(straight)
    ]
    found, wanted = (trainer.model.state_dict() for trainer in (resumed, straight))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_every_setting_of_trls_config_is_one_here_with_its_default(tmp_path) -> None:
    own, theirs = (kind(str(tmp_path), use_cpu=True) for kind in (KTOConfig, trl.KTOConfig))
    for field in fields(trl.KTOConfig):
        if field.init and field.name not in ("logging_dir", "run_name"):
            assert getattr(own, field.name) == getattr(theirs, field.name), field.name


def test_a_plain_trl_config_is_taken_as_it_stands(built, tmp_path) -> None:
    weights = {"desirable_weight": 0.5, "undesirable_weight": 2.0}
    args = kto(tmp_path / "plain", trl.KTOConfig, weight_decay=0.125, **weights)
    trainer = built(args=args)
    assert isinstance(trainer.args, KTOConfig)
    assert trainer.objective == KTO(beta=0.3, **weights)
    assert (trainer.args.weight_decay, trainer.args.max_steps) == (0.125, STEPS)
    assert {"trl", "kto"} <= set(trainer.model.model_tags)
    with pytest.raises(RecipeError, match=r"use KTOConfig of align\.trainers, or trl\.KTOConfig"):
        built(args=kto(tmp_path / "other", trl.DPOConfig))


def test_what_the_kl_term_cannot_do_with_is_refused(built, tmp_path, tiny_folder, tiny_tokenizer):
    with pytest.raises(
        RecipeError, match=r"train_sampling_strategy='sequential' \(it is 'random'\)"
    ):
        built(changes={"train_sampling_strategy": "random"})
    with pytest.raises(RecipeError, match="per_device_train_batch_size is 1"):
        built(changes={"per_device_train_batch_size": 1})
    with pytest.raises(RecipeError, match=r"'kot' is no loss .*did you mean `kto`"):
        kto(tmp_path, loss_type="kot")
    with pytest.raises(RecipeError, match=r"label_smoothing = 0\.1 .*silently dead"):
        kto(tmp_path, label_smoothing=0.1)
    # The same objective by the general trainer is asked for the same.
    with pytest.raises(RecipeError, match="train_sampling_strategy='sequential'"):
        GroupTrainer(
            tiny_folder,
            args=GroupConfig(**settings(str(tmp_path), train_sampling_strategy="random")),
            train_dataset=some_rows(),
            processing_class=tiny_tokenizer,
            objective=KTO(),
        )


def test_unequal_labels_are_told_as_trl_tells_them(built, caplog, tmp_path) -> None:
    """6 of 18 undesirable: 6/12 = 0.5 to 0.665 (0.67), or 12/6/1.33 = 1.504 (1.5) to 2."""
    with caplog.at_level(logging.WARNING):
        built(changes={"max_steps": 1})
    assert "12 completions are desirable and 6 are not" in caplog.text
    assert "desirable_weight within [0.5, 0.67] or undesirable_weight within [1.5, 2.0]" in (
        caplog.text
    )
    labels = [True] * 12 + [False] * 6
    for weights in ({"desirable_weight": 0.6}, {"undesirable_weight": 1.5}):
        assert unbalanced(labels, kto(tmp_path, **weights)) is None
    assert unbalanced([True, False], kto(tmp_path)) is None


CHAT = (
    "{{ 's ' if not capital else 't ' }}{% if tools %}{{ tools[0]['name'] + ' ' }}{% endif %}"
    "{% for m in messages %}{{ m['role'][0] + ' ' }}{% if m.get('tool_calls') %}"
    "{{ m['tool_calls'] + ' ' }}{% endif %}{{ (m.get('content') or '') + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)


@pytest.mark.parametrize("with_tools", [False, True], ids=["plain", "tools"])
def test_conversations_become_trls_tokens(
    with_tools, built, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    def row(text: str, label: bool) -> dict[str, Any]:
        made: dict[str, Any] = {
            "prompt": [{"role": "user", "content": "x y"}],
            "completion": [{"role": "assistant", "content": text}],
            "label": label,
        }
        if with_tools:
            made["tools"] = json.dumps([{"name": "w"}])
            made["chat_template_kwargs"] = {"capital": label}
        return made

    rows = Dataset.from_list([row("b c", True), row("d", False), row("e", True)])
    tiny_tokenizer.chat_template = CHAT
    try:
        theirs = trl.KTOTrainer(
            tiny_folder,
            args=kto(tmp_path / "trl", trl.KTOConfig),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
        ).train_dataset
        ours = built(rows).train_dataset
    finally:
        tiny_tokenizer.chat_template = None
    assert ours["prompt_ids"][:] == theirs["prompt_ids"][:]
    assert [row[0] for row in ours["completions_ids"]] == theirs["completion_ids"][:]


def test_a_row_that_cannot_be_used_is_named(built, caplog) -> None:
    rows = some_rows().to_list()
    rows[4]["completion"] = "  "
    with caplog.at_level(logging.WARNING):
        trainer = built(Dataset.from_list(rows), changes={"max_dropped": 0.1})
    assert len(trainer.train_dataset) == 17
    assert "train data, row 5, completions[0]: empty_completion" in caplog.text
    # The row behind it takes the completion of the row before it.
    assert trainer.train_dataset["mismatched_ids"][5] == trainer.train_dataset["completions_ids"][4]


def test_sums_under_the_reference_are_trls(built, tiny_folder, tiny_tokenizer, tmp_path) -> None:
    theirs = trl.KTOTrainer(
        tiny_folder,
        args=kto(tmp_path / "trl", trl.KTOConfig),
        train_dataset=some_rows(),
        processing_class=tiny_tokenizer,
    )
    ours = built(dtype=torch.float32)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    found = ours.compute_ref_log_probs(ours.model, batch)
    wanted = theirs.compute_ref_log_probs(
        theirs.ref_model, theirs.data_collator([theirs.train_dataset[i] for i in range(4)])
    )
    for mine, trls in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, trls, rtol=1e-5, atol=1e-5)


def test_a_picture_inside_of_a_message_is_named_and_not_passed_over() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "x"}]
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": content}], "label": True}
    row["completion"] = [{"role": "assistant", "content": "y"}]
    with pytest.raises(DataError, match=r"prompt\[0\]\.content: unsupported_content"):
        groups_from_rows([("test", 1, row)], policy=RowPolicy())
