"""A script for `trl.DPOTrainer` runs with the import changed: settings, rows, roles, records."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLTrainer

from align.errors import DataError, RecipeError
from align.objectives import DPO, Hinge
from align.trainers import DPOConfig, DPOTrainer, RDPOTrainer
from align.trainers.config import LOSS_SWITCHES, REFUSED
from align.trainers.trl_losses import LOSSES, objective_node

SETTINGS = {
    "learning_rate": 5e-3,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "max_length": None,
}
# Each of DPOConfig's own settings: what becomes of it here.
BECOMES = {
    "objective": {"beta", *LOSS_SWITCHES},
    "honoured": {
        "model_init_kwargs",
        "trust_remote_code",
        "router_aux_loss_coef",
        "disable_dropout",
        "max_length",
        "precompute_ref_log_probs",
        "precompute_ref_batch_size",
        "activation_offloading",
        "pad_token",
        "sync_ref_model",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "learning_rate",
    },
    # No number depends on them: worker processes, and slots of padding that nobody attends to.
    "inert": {"dataset_num_proc", "pad_to_multiple_of", "padding_free"},
    "refused": {"truncation_mode"},
}


def config(out: Path, kind=trl.DPOConfig, **changes):
    return kind(str(out), **(SETTINGS | changes))


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(trainer=DPOTrainer, model=tiny_folder, rows=pairs, kind=trl.DPOConfig, **given):
        changes = given.pop("changes", {})
        return trainer(
            model,
            args=config(tmp_path / trainer.__module__, kind, **changes),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            **given,
        )

    return build


A, B = "abcdefghijklmnop", "zyxwvutsrqponmlk"


def losses(trainer) -> list[float]:
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def test_every_setting_of_trls_config_has_one_fate() -> None:
    common = {field.name for field in fields(trl.trainer.base_config._BaseConfig)}
    own = {field.name for field in fields(trl.DPOConfig)} - common | {"learning_rate"}
    told = [name for names in BECOMES.values() for name in names]
    assert sorted(told) == sorted(own)


def test_a_plain_trl_config_is_taken_as_it_stands(make) -> None:
    trainer = make(changes={"beta": 0.4, "weight_decay": 0.125})
    assert isinstance(trainer.args, DPOConfig)
    assert trainer.objective == DPO(beta=0.4)
    assert (trainer.args.weight_decay, trainer.args.max_steps) == (0.125, 2)
    assert trainer.args.on_too_long == "cut_completion"
    assert {"trl", "dpo"} <= set(trainer.model.model_tags)


def test_one_loss_is_meant(make) -> None:
    """DPO's own settings and TRL's choice of another loss do not go together."""
    both = {"loss_type": "hinge", "f_divergence": "forward_kl"}
    with pytest.raises(RecipeError, match="f_divergence is DPO's own setting and loss_type is"):
        make(kind=DPOConfig, changes=both)
    assert make(changes={"loss_type": "hinge"}).objective == Hinge(beta=0.1)


def test_another_trainer_refuses_its_loss_switches(make) -> None:
    with pytest.raises(RecipeError, match=r"loss_type = \['ipo'\].*silently dead"):
        make(RDPOTrainer, changes={"loss_type": "ipo"})


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"beta"} - LOSS_SWITCHES.keys()))
def test_what_would_change_a_number_is_refused_by_name(tmp_path, name) -> None:
    value = {"include_for_metrics": ["loss"]}.get(name, True)
    with pytest.raises(RecipeError, match=rf"DPOConfig\.{name} = .*silently dead"):
        config(tmp_path, DPOConfig, **{name: value})


def node(tmp_path, **changes):
    return objective_node(config(tmp_path, **changes))


def test_loss_types_are_objectives(tmp_path) -> None:
    assert node(tmp_path, beta=0.4) == {"name": "dpo", "beta": 0.4}
    ipo = {"name": "ipo", "tau": 0.4, "length_normalised": True}
    assert node(tmp_path, loss_type="ipo", beta=0.4) == ipo
    robust = {"name": "rdpo", "beta": 0.1, "flip_probability": 0.2}
    assert node(tmp_path, loss_type="robust", label_smoothing=0.2) == robust
    shifted = {"name": "bco", "beta": 0.4, "shift": "zero"}
    assert node(tmp_path, loss_type="bco_pair", beta=0.4) == shifted
    sorted_by = {"name": "aot_unpaired", "beta": 0.4, "label_smoothing": 0.1}
    assert node(tmp_path, loss_type="aot_unpaired", beta=0.4, label_smoothing=0.1) == sorted_by
    mixed = node(tmp_path, loss_type=["sigmoid", "sppo_hard"], loss_weights=[0.5, 0.25])
    # TRL's sppo_hard has no factor 1/2, so it counts twice.
    assert [part["weight"] for part in mixed["of"]] == [0.5, 0.5]
    assert mixed["name"] == "sum"
    ld = {"name": "ld_dpo", "beta": 0.1, "alpha": 0.0}
    assert node(tmp_path, ld_alpha=0.0) == ld
    js = {"name": "dpo", "beta": 0.1, "f_divergence": "js_divergence"}
    assert node(tmp_path, f_divergence_type="js_divergence") == js
    weighted = {"name": "wpo", "beta": 0.4, "alignment": "sampled"}
    assert node(tmp_path, use_weighting=True, beta=0.4) == weighted
    for switches, inner in (({"ld_alpha": 0.0}, ld), ({"f_divergence_type": "js_divergence"}, js)):
        (part,) = node(tmp_path, use_weighting=True, **switches)["of"]
        assert part == {"weight": 1.0, "pair_weight": "wpo", "objective": inner}
    mixed = node(tmp_path, use_weighting=True, loss_type=["sigmoid", "sft"])
    assert [part["pair_weight"] for part in mixed["of"]] == ["wpo", "wpo"]


def test_every_loss_of_trl_is_in_the_table() -> None:
    told = next(f for f in fields(trl.DPOConfig) if f.name == "loss_type").metadata["help"]
    assert all(f"'{name}'" in told for name in LOSSES)
    assert len(LOSSES) == 15


def test_switches_that_have_no_form_here_say_so(tmp_path, caplog) -> None:
    with pytest.raises(RecipeError, match="use_weighting: loss_type aot_unpaired compares sorted"):
        node(tmp_path, use_weighting=True, loss_type=["sigmoid", "aot_unpaired"])
    with pytest.raises(RecipeError, match=r"'sigmiod' is no loss .*did you mean `sigmoid`"):
        node(tmp_path, loss_type="sigmiod")
    with pytest.raises(RecipeError, match="not for hinge"):
        node(tmp_path, loss_type="hinge", f_divergence_type="forward_kl")
    with pytest.raises(RecipeError, match="ld_alpha is an objective of its own"):
        node(tmp_path, loss_type="ipo", ld_alpha=0.5)
    with caplog.at_level(logging.WARNING):
        node(tmp_path, label_smoothing=0.1)
    assert "label_smoothing = 0.1 is read by none of sigmoid" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "sigmoid"},
        {"loss_type": "ipo", "beta": 0.4},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 2},
        {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 6},
    ],
    ids=lambda changes: next(iter(changes.values())),
)
def test_the_losses_are_trls(make, changes) -> None:
    rows = words(
        *((f"{p} q", f" {c} x {c}", f" {r}") for p, c, r in zip(A, B, A[3:], strict=False))
    )
    theirs = losses(make(TRLTrainer, rows=rows, changes=changes))
    ours = losses(make(DPOTrainer, rows=rows, changes=changes))
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert len(set(ours)) > 1


def test_a_stream_is_trained_on_as_its_rows_would_be(make, pairs) -> None:
    changes = {"train_sampling_strategy": "sequential", "max_steps": 3}
    table = make(changes=changes)
    stream = make(rows=pairs.to_iterable_dataset(), changes=changes)
    assert losses(stream) == pytest.approx(losses(table), abs=1e-6)
    with pytest.raises(RecipeError, match=r"precompute_ref_log_probs.*not supported with Iterable"):
        make(rows=pairs.to_iterable_dataset(), changes={"precompute_ref_log_probs": True})


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules=["q_proj"])])
def test_new_rows_are_evaluated_after_training_as_before_it_would_have_been(
    make, pairs, adapter
) -> None:
    known = make(eval_dataset=pairs, peft_config=adapter)
    known.train()
    new = make(peft_config=adapter)
    new.train()
    trained = {name: p.detach().clone() for name, p in new.model.named_parameters()}
    wanted = known.evaluate()["eval_loss"]
    assert wanted != pytest.approx(np.log(2), abs=1e-3)
    assert new.evaluate(pairs)["eval_loss"] == pytest.approx(wanted, abs=1e-6)
    stream = new.evaluate({"s": pairs.to_iterable_dataset()})
    assert stream["eval_s_loss"] == pytest.approx(wanted, abs=1e-6)
    assert all(torch.equal(p, trained[name]) for name, p in new.model.named_parameters())


def test_compute_metrics_is_given_rewards_of_all_pairs(make, pairs) -> None:
    seen = []

    def metrics(given):
        seen.append(given)
        return {"mine": float((given.predictions[:, 0] > given.predictions[:, 1]).mean())}

    trainer = make(eval_dataset=pairs, compute_metrics=metrics)
    trainer.train()
    found = trainer.evaluate()
    [given] = seen
    assert given.predictions.shape == (len(pairs), 2)
    assert given.label_ids.tolist() == [0] * len(pairs)
    assert given.predictions[:, 0].mean() == pytest.approx(found["eval_rewards/chosen"], abs=1e-6)
    assert found["eval_mine"] == pytest.approx(found["eval_rewards/accuracies"])
    assert found["eval_num_tokens"] > 0


def words(*rows: tuple[str, str, str]) -> Dataset:
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def test_rows_over_a_small_limit_are_left_out_and_told(make, caplog) -> None:
    rows = words(("a b", " c", " d"), ("a b c d e f", " g", " h"))
    with caplog.at_level(logging.WARNING):
        trainer = make(rows=rows, changes={"max_length": 4})
    assert trainer.train_dataset["prompt"] == ["a b"]
    assert "1 dropped (1 too_long)" in caplog.text
    with pytest.raises(DataError, match=r"1 of 2 rows.*over max_dropped = 0\.05"):
        make(rows=words(("a b", " c", " d"), ("a", " b", " b")))
    with pytest.raises(RecipeError, match="max_length is 1"):
        make(changes={"max_length": 1})


def test_texts_that_were_rendered_beforehand_keep_their_control_tokens(make) -> None:
    rows = words(("<s> a b", " c </s>", " d </s>"))
    kept = make(rows=rows, kind=DPOConfig, changes={"on_control_tokens": "keep"})
    row = kept.train_dataset[0]
    assert (row["prompt_ids"], row["chosen_ids"]) == ([1, 4, 5], [6, 2])
    with pytest.raises(DataError, match="1 control_tokens"):
        make(rows=rows)


CHAT = (
    "{{ 's ' if not capital else 't ' }}{% if tools %}{{ tools[0]['name'] + ' ' }}{% endif %}"
    "{% for m in messages %}{{ m['role'][0] + ' ' }}{% if m.get('tool_calls') %}"
    "{{ m['tool_calls'] + ' ' }}{% endif %}{{ (m.get('content') or '') + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)


def test_tools_calls_and_template_arguments_reach_the_template(make, tiny_tokenizer) -> None:
    def row(capital: bool):
        def said(text):
            return [
                {"role": "assistant", "tool_calls": text},
                {"role": "tool", "content": "y"},
                {"role": "assistant", "content": "z"},
            ]

        return {
            "prompt": [{"role": "user", "content": "x"}],
            "chosen": said("b"),
            "rejected": said("c"),
            "tools": json.dumps([{"name": "w"}]),
            "chat_template_kwargs": {"capital": capital},
        }

    tiny_tokenizer.chat_template = CHAT
    try:
        trainer = make(rows=Dataset.from_list([row(False), row(True)]))
    finally:
        tiny_tokenizer.chat_template = None
    texts = [
        tiny_tokenizer.decode(trainer.train_dataset[i][name])
        for i in (0, 1)
        for name in ("prompt_ids", "chosen_ids")
    ]
    answer = "b </s> t y a z </s>"
    assert texts == ["s w u x a", answer, "t w u x a", answer]


def test_no_empty_staging_folder_is_left(make, tmp_path) -> None:
    trainer = make(changes={"save_strategy": "steps", "save_steps": 1})
    trainer.train()
    left = sorted(p.name for p in Path(trainer.args.output_dir).iterdir() if p.is_dir())
    assert left == ["checkpoint-1", "checkpoint-2"]


def test_the_message_about_dropout_names_the_setting(make) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    with pytest.raises(ArithmeticError, match="disable_dropout is False"):
        make(peft_config=lora, changes={"disable_dropout": False})


def test_a_stream_names_the_row_that_cannot_be_used(make, caplog) -> None:
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"} for _ in range(4)]
    rows[1]["rejected"] = " b"
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with caplog.at_level(logging.WARNING):
        make(rows=stream, changes={"max_steps": 1}).train()
    assert "Row 1 of the train data is left out" in caplog.text


def test_a_run_may_go_on_for_longer_and_another_trainers_checkpoint_is_told(make, pairs) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    make(changes=saving).train()
    longer = make(changes=saving | {"max_steps": 3})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 3
    checkpoint = Path(longer.args.output_dir) / "checkpoint-2"
    with pytest.raises(RecipeError, match=r"max_steps: 2 -> 1\b"):
        make(changes=saving | {"max_steps": 1}).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(RecipeError, match="written by another trainer"):
        make(changes=saving).train(resume_from_checkpoint=str(checkpoint))
