"""What a model card says about the training, the data and the base is true and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from align.publishing.cards import model_card
from align.publishing.origins import base_licence, base_loading, split_of
from align.publishing.training_card import training

TRAIN = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 2.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "bf16": None,
    "fp16": False,
}
MODEL = {"model_name_or_path": "org/base", "model_revision": "main", "dtype": "bfloat16"}
MODEL |= {"use_peft": False, "load_in_4bit": False}
RECIPE: dict[str, Any] = {
    "model": MODEL,
    "data": {"pairs": "org/pairs", "split": "train_prefs", "max_length": 2048},
    "objective": {"name": "dpo", "beta": 0.1},
    "train": TRAIN,
}
METRICS: dict[str, Any] = {
    "before": {},
    "after": {},
    "seed": 3,
    "training": {"steps": 96, "processes": 2},
    "roles": {"reference": {"dtype": "torch.bfloat16/bf16"}},
}
ADAPTER = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["v_proj", "q_proj"],
    "layers_to_transform": [0, 20, 21, 22],
}


def rows(table: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return dict(cells)


def test_the_whole_training_is_told() -> None:
    assert rows(training(RECIPE, METRICS, None)) == {
        "learning rate": "5e-05, cosine schedule, warm-up over 10% of the steps",
        "length": "2 epochs, 96 optimizer steps in all",
        # 8 x 4 x 2
        "batch": "64 pairs a step (8 per device x 4 accumulated x 2 processes)",
        "optimizer": "adamw_torch_fused",
        "trained weights": "all",
        "precision": "weights in bfloat16, bf16 autocast",
        "length of a row": "at most 2,048 tokens",
    }


def test_an_adapter_is_told_by_what_lies_in_its_folder() -> None:
    recipe = RECIPE | {"model": MODEL | {"use_peft": True, "lora_r": 16, "load_in_4bit": True}}
    found = rows(training(recipe, METRICS, ADAPTER))
    expected = "LoRA of rank 16, alpha 32 on q_proj, v_proj of layers 0, 20-22"
    assert found["trained weights"] == expected
    assert found["precision"].endswith("the frozen ones in 4 bits (nf4), bf16 autocast")


def test_what_was_not_recorded_is_not_told() -> None:
    train = TRAIN | {"max_steps": 40, "gradient_accumulation_steps": 1}
    found = rows(training(RECIPE | {"train": train}, {"before": {}, "after": {}}, None))
    assert found["length"] == "40 steps"
    assert found["batch"] == "8 pairs a step and device"
    assert found["precision"] == "weights in bfloat16"
    assert training({}, {}, None) == "Not recorded."


def card(adapter: dict[str, Any] | None = None, **changes: Any) -> str:
    return model_card(RECIPE | changes, METRICS, {"read": 9, "kept": 9}, adapter=adapter)


def test_only_a_data_set_of_the_hub_has_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("")
    assert split_of(RECIPE) == ", split `train_prefs`"
    assert split_of({"data": {"pairs": "org/p", "split": "a", "revision": "b"}}).endswith("n `b`")
    for pairs in ("rows.jsonl", "world:sums", "/data/rows"):
        assert split_of({"data": {"pairs": pairs, "split": "train"}}) == ""
    said = card(data={"pairs": "rows.jsonl", "split": "train"})
    assert "Preference pairs from the local `rows.jsonl`." in said
    assert "split" not in said


def test_a_loops_pairs_are_told_as_its_own() -> None:
    stages = [{"run": "generate"}, {"run": "judge", "by": "answers"}]
    loop = {"rounds": 3, "steps": 30, "pairs": 120, "judge_calls": 480}
    metrics = METRICS | {"loop": loop, "training": {}}
    recipe = RECIPE | {
        "data": {"pairs": None, "split": "train"},
        "prompts": {"source": "org/prompts", "split": "test"},
        "rounds": 3,
        "each_round": stages,
    }
    said = model_card(recipe, metrics, {})
    assert "in 3 rounds out of its policies' own answers, judged by `answers`" in said
    assert "Prompts from `org/prompts`, split `test`." in said
    assert "They are 120 pairs and 480 judgements in all." in said
    assert "`None`" not in said
    assert "2 epochs in each of 3 rounds, 30 optimizer steps in all" in said


def test_rows_trained_on_and_held_out_are_counted() -> None:
    said = model_card(RECIPE, METRICS, {"read": 9, "kept": 8, "train": 6, "held_out": 2})
    assert "| of these trained on | 6 |\n| of these held out | 2 |" in said


@pytest.mark.parametrize(
    ("base", "line", "says"),
    [
        ("org/base", 'from_pretrained("org/base")', None),
        ("gpt2", 'from_pretrained("gpt2")', None),
        ("world:sums", 'from_pretrained(str(align.world("sums").base_model()))', None),
        ("hf", 'from_pretrained("path/to/the/base")', "a local folder named `hf`"),
        ("/scratch/ana/hf", 'from_pretrained("path/to/the/base")', "a local folder named `hf`"),
        (
            "smollm2-135m-instruct",
            'from_pretrained(fetched_folder("smollm2-135m-instruct"))',
            "de-quantised from Q4_1",
        ),
    ],
)
def test_an_adapters_base_is_loaded_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, line: str, says: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf").mkdir()
    said = card(ADAPTER, model=MODEL | {"model_name_or_path": base})
    assert line in said
    assert "/scratch" not in said
    assert says is None or says in said
    code = said.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")


def test_a_pinned_base_is_loaded_at_its_commit() -> None:
    assert base_loading("org/base", "abc")[1] == '"org/base", revision="abc"'
    assert base_loading("org/base", "main")[1] == '"org/base"'


def test_the_bases_licence_is_told_where_its_card_states_one(tmp_path: Path) -> None:
    assert base_licence("smollm2-135m-instruct") == "apache-2.0"
    assert base_licence("world:sums") is None
    folder = tmp_path / "base"
    folder.mkdir()
    assert base_licence(str(folder)) is None
    for text in ("no front matter", "---\nlicense: [\n---\n", "---\nlicense: unknown\n---\n"):
        (folder / "README.md").write_text(text)
        assert base_licence(str(folder)) is None
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    said = card(model=MODEL | {"model_name_or_path": str(folder)})
    assert "The base model's own card states the licence `mit`." in said
    # Stated by the base and not by the owner of this model.
    assert yaml.safe_load(said.split("---\n")[1])["license"] == "unknown"
