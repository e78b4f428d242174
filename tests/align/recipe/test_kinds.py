"""`kind: reward | preference_model | sft`: what they take, refuse, explain and write back."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import trl
import yaml

from align.app.recipes import load_any
from align.errors import RecipeError
from align.recipe import (
    KINDS,
    explain,
    kind_of,
    load_kind_recipe,
    load_recipe,
    recipe_key,
    resolved_yaml,
)
from align.recipe.schemas import description_of

PLAIN: dict[str, Any] = {
    "model": {"model_name_or_path": "some/model"},
    "data": {"pairs": "rows.jsonl"},
}


def written(folder: Path, kind: str | None, **changes: Any) -> Path:
    nodes = ({} if kind is None else {"kind": kind}) | PLAIN | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(nodes, sort_keys=False))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_back_is_the_same_recipe(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind, train={"max_steps": 3, "seed": 1}, hub={"repo": "me/x"})
    recipe = load_kind_recipe(path)
    assert kind_of(path) == recipe.kind == kind
    text = resolved_yaml(recipe)
    assert text.startswith(f"kind: {kind}\n")
    assert not set(recipe.train.unread) & set(yaml.safe_load(text)["train"])
    path.write_text(text)
    again = load_any(path)
    assert again == recipe
    assert recipe_key(again) == recipe_key(recipe)
    other = load_kind_recipe(path, ["train.seed=2"])
    assert recipe_key(other) != recipe_key(recipe)


def test_the_kind_is_part_of_what_names_a_run(tmp_path: Path) -> None:
    keys = {recipe_key(load_kind_recipe(written(tmp_path, kind))) for kind in KINDS}
    assert len(keys) == len(KINDS)


@pytest.mark.parametrize(("kind", "rate"), [("reward", 1e-4), ("sft", 2e-5)])
def test_rates_begin_where_trl_begins(kind: str, rate: float, tmp_path: Path) -> None:
    assert load_kind_recipe(written(tmp_path, kind)).train.learning_rate == rate


@pytest.mark.parametrize(("kind", "config"), [("reward", "RewardConfig"), ("sft", "SFTConfig")])
def test_keys_and_defaults_of_train_are_those_of_the_installed_trl(kind: str, config: str) -> None:
    known = {field.name: field for field in dataclasses.fields(getattr(trl, config))}
    section = KINDS[kind].model_fields["train"].annotation
    assert section is not None
    unread, ours = section.unread, section.model_fields
    for name in ours.keys() - unread.keys():
        assert name in known, name
    for name in ("learning_rate", "center_rewards_coefficient"):
        if name in ours:
            assert ours[name].default == known[name].default
    # What is refused is what TRL does not take, and what only the forest reads.
    assert {name for name in unread if name in known} <= {"router_aux_loss_coef"}


REFUSED = {
    "objective": ("reward", {"objective": {"name": "dpo"}}, "the kind says what the loss is"),
    "roles": ("sft", {"roles": {"reference": "start"}}, "compares with no frozen policy"),
    "rounds": ("reward", {"rounds": 2}, "the kind is trained once"),
    "evaluate": ("preference_model", {"evaluate": {"n": 3}}, "accuracy, margin, calibration"),
    "train.token_budget": ("reward", {"train": {"token_budget": 400}}, "rows are padded"),
    "train.forest_backend": ("sft", {"train": {"forest_backend": "tree"}}, "rows are padded"),
    "train.router_aux_loss_coef": (
        "reward",
        {"train": {"router_aux_loss_coef": 0.1}},
        "trained without it",
    ),
    "train.disable_dropout": ("sft", {"train": {"disable_dropout": False}}, "own dropout"),
    "train.center_rewards_coefficient": (
        "preference_model",
        {"train": {"center_rewards_coefficient": 0.1}},
        "only `kind: reward` would read it",
    ),
    "train.train_sampling_strategy": (
        "reward",
        {"train": {"train_sampling_strategy": "group_by_prompt"}},
        "only preference training keeps",
    ),
    "train.centre_rewards_coefficient": (
        "reward",
        {"train": {"centre_rewards_coefficient": 0.1}},
        "did you mean `train.center_rewards_coefficient`",
    ),
    "data.completions": (
        "reward",
        {"data": {"completions": "a.jsonl"}},
        "only `kind: sft` would read it",
    ),
    "data.on_too_long": (
        "preference_model",
        {"data": {"pairs": "a", "on_too_long": "cut_completion"}},
        "whole answers are compared",
    ),
    "evaluate.suite": (
        "sft",
        {"data": {"completions": "a.jsonl"}, "evaluate": {"suite": ["preference"]}},
        "preference needs pairs",
    ),
    "data.pairs": ("reward", {"data": {"held_out": 4}}, "is missing"),
    "train.eval_strategy": (
        "sft",
        {"data": {"pairs": "a", "held_out": 0}, "train": {"eval_strategy": "steps"}},
        "no rows to evaluate on",
    ),
    "modle": ("reward", {"modle": {}}, "did you mean `model`"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_makes_no_sense_is_refused_with_a_sentence(key: str, tmp_path: Path) -> None:
    kind, changes, says = REFUSED[key]
    path = written(tmp_path, kind, **changes)
    with pytest.raises(RecipeError) as caught:
        load_kind_recipe(path)
    (line,) = [one for one in str(caught.value).splitlines() if f"{key}: " in one]
    assert says in line
    assert line.startswith(f"{path}:"), "with its line"


def test_pairs_and_completions_are_not_both_imitated(tmp_path: Path) -> None:
    path = written(tmp_path, "sft", data={"pairs": "a", "completions": "b"})
    with pytest.raises(RecipeError, match="pairs already give completions"):
        load_kind_recipe(path)


def test_an_unknown_kind_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "rewrad")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: kind: .*did you mean `reward`"):
        kind_of(path)
    with pytest.raises(RecipeError, match="`kind` is missing"):
        load_kind_recipe(written(tmp_path, None))


def test_other_recipes_say_which_kind_would_read_a_key(tmp_path: Path) -> None:
    changes = {"objective": {"name": "dpo"}, "train": {"center_rewards_coefficient": 0.1}}
    path = written(tmp_path, None, roles={"reference": "start"}, **changes)
    with pytest.raises(RecipeError, match="only `kind: reward` would read it"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"kind: reward.* is trained by `align train"):
        load_recipe(written(tmp_path, "reward"))


def test_every_key_of_every_kind_is_described_and_explained() -> None:
    for kind, root in KINDS.items():
        assert root.__doc__
        for section, field in root.model_fields.items():
            key = f"kind.{kind}.{section}"
            assert key in explain(key)
            fields: dict[str, Any] = getattr(field.annotation, "model_fields", {})
            for name in fields:
                described = description_of(field.annotation, name)  # type: ignore[arg-type]
                assert not described.startswith("see `"), f"{key}.{name}"
                assert described in explain(f"{key}.{name}")
    assert "reward: " in explain("kind")
    # A key that only a kind has is found without saying which.
    assert "arXiv:2312.09244" in explain("train.center_rewards_coefficient")
    with pytest.raises(RecipeError, match="did you mean `train`"):
        explain("kind.reward.trian")
    with pytest.raises(RecipeError, match="no such kind; did you mean `reward`"):
        explain("kind.rewardd")
