"""Recipes over groups: what `align check` says is what `align train` does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.app.check_recipe import Wanted, check_recipe
from align.app.memory import batch_tokens
from align.app.train import train_recipe
from align.errors import AlignError, DataError
from align.recipe import load_recipe, resolved_yaml
from tests import tiny_loops

TEXTS = ("ab", "cde", "f", "gh")


def rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": letter * 3}],
            "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
            "scores": [number, 1.0, 0.0, number / 2],
        }
        for number, letter in enumerate(tiny_loops.LETTERS)
    ]


@pytest.fixture
def write(place: Path, policy: Path):
    """Function: changes of a recipe of eight groups, two of them held out -> its file."""

    def make(**changes: Mapping[str, Any]) -> Path:
        tiny_loops.write_rows(place / "groups.jsonl", rows())
        nodes: dict[str, Any] = {
            "model": {"model_name_or_path": str(policy)},
            "roles": {"reference": "start"},
            "data": {"groups": str(place / "groups.jsonl"), "held_out": 2},
            "objective": {"name": "lipo"},
            "train": tiny_loops.TRAIN | {"save_strategy": "no"},
            "evaluate": {"suite": []},
        }
        for key, value in changes.items():
            replaced = key in ("objective", "roles")
            nodes[key] = dict(value) if replaced else nodes[key] | dict(value)
        path = place / "recipe.yaml"
        path.write_text(yaml.safe_dump(nodes))
        return path

    return make


def test_the_check_counts_what_training_then_sees(write, tmp_path: Path) -> None:
    """bos, user, 3 letters, end, assistant = 7 tokens; 2 + 3 + 1 + 2 letters and 4 ends = 12."""
    path = write(train={"eval_strategy": "epoch"})
    said = check_recipe(path, []).splitlines()
    assert said[0] == "rows: 8 rows read, 8 kept"
    assert said[1] == "groups: 6 to train on, 2 held out, 3 steps"
    assert said[2] == "completions: 24, 4 in a group"
    assert "prompt tokens: min 7, median 7, p95 7, max 7" in said
    assert "completion tokens: min 2, median 3, p95 4, max 4" in said
    assert "group tokens: min 19, median 19, p95 19, max 19" in said
    assert "token invariants: hold on all groups" in said
    train_recipe(path, [], tmp_path / "run", ())
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["data"] == {
        "read": 8,
        "kept": 8,
        "dropped": {},
        "notes": {},
        "train": 6,
        "held_out": 2,
        "completions": 24,
    }
    assert metrics["training"]["steps"] == 3
    history = json.loads((tmp_path / "run/log_history.json").read_text())
    (evaluated,) = [row for row in history if "eval_loss" in row]
    assert 0 <= evaluated["eval_rewards/accuracies"] <= 1
    assert any(row.get("grad_norm", 0) > 0 for row in history)
    card = (tmp_path / "run/model/README.md").read_text()
    assert "Groups of completions from the local `groups.jsonl`" in card
    assert "2 groups a step" in card
    assert "| of these trained on | 6 |" in card


def test_the_estimate_of_memory_takes_whole_groups(write) -> None:
    recipe = load_recipe(write())
    assert batch_tokens(recipe, [19, 30, 5]) == 49  # two of them in a batch
    budgeted = load_recipe(write(train={"token_budget": 16}))
    assert batch_tokens(budgeted, [19, 30, 5]) == 30


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_missing_column_is_named_before_anything_runs(command, write, tmp_path: Path) -> None:
    path = write(objective={"name": "gepo"})
    run = tmp_path / "run"
    does = {
        "check": lambda: check_recipe(path, []),
        "train": lambda: train_recipe(path, [], run, ()),
    }
    with pytest.raises(DataError, match=r"needs the column label .* 6 of 6 groups") as caught:
        does[command]()
    assert "`label: {above: 0.5}` under data" in str(caught.value)
    assert not (run / "model").exists()


def test_labels_that_the_recipe_makes_are_counted_by_the_check(write) -> None:
    """Above 1 are the scores 2 to 7, and 3 / 2 to 7 / 2."""
    path = write(objective={"name": "gepo"})
    said = check_recipe(path, ["data.label={above: 1}", "data.held_out=0"])
    assert "labels: 11 of 32 completions are desirable" in said


def test_the_example_shows_every_completion_with_what_is_known_of_it(write) -> None:
    path = write(objective={"name": "gepo"}, data={"label": {"above": 0.5}, "advantage": "mean"})
    said = check_recipe(path, [], Wanted(example=True))
    assert "--- completion 2 (4 tokens, score 1.0, label True, advantage" in said
    assert "cde<end>" in said
    assert "warning: scores: gepo does not read them" in said
    # The recipe asked for these itself.
    assert "advantages: gepo" not in said


CONFLICTS = {
    "pairs for groups": (
        {"data": {"groups": None, "pairs": "rows.jsonl"}},
        "data.pairs: objective lipo learns from groups: write data.groups",
    ),
    "groups for pairs": (
        {"objective": {"name": "dpo"}},
        "data.groups: objective dpo learns from pairs: write data.pairs",
    ),
    "both": ({"data": {"pairs": "rows.jsonl"}}, "data.groups: pairs stands beside it"),
    "neither": ({"data": {"groups": None}}, "data.groups: is missing"),
    "preference": (
        {"evaluate": {"suite": ["preference"]}},
        "evaluate.suite: preference compares the two sides of pairs, and lipo learns from groups",
    ),
    "a reader of pairs": ({"data": {"format": "hh"}}, "data.format: it reads pairs"),
    "labels by no rule": ({"data": {"label": {}}}, "data.label.above: write one of the two"),
    "labels of pairs": (
        {
            "objective": {"name": "dpo"},
            "data": {"groups": None, "pairs": "rows.jsonl", "label": {"above": 0.5}},
        },
        "data.label: is made of the scores of groups",
    ),
    "an order that kto cannot use": (
        {"objective": {"name": "kto"}},
        "train.train_sampling_strategy: kto takes the completions of the row before each row",
    ),
    "nothing to evaluate on": (
        {"data": {"held_out": 0}, "train": {"eval_strategy": "epoch"}},
        "train.eval_strategy: there are no groups to evaluate on",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_cannot_stand_together_is_told_by_its_key(case, write) -> None:
    changes, sentence = CONFLICTS[case]
    with pytest.raises(AlignError) as caught:
        load_recipe(write(**changes))
    assert sentence in str(caught.value)


def test_pairs_of_a_file_can_be_measured_beside_groups(write, place: Path) -> None:
    path = write(data={"eval_pairs": str(place / "eval.jsonl")}, evaluate={"suite": ["preference"]})
    recipe = load_recipe(path)
    assert recipe.data.held_out == 2
    assert "evaluation: about" in check_recipe(path, [])


def test_recipes_are_written_back_and_those_of_pairs_as_before_there_were_groups(
    write, place: Path
) -> None:
    recipe = load_recipe(write(data={"label": {"best": 1}}))
    written = place / "written.yaml"
    written.write_text(resolved_yaml(recipe))
    assert load_recipe(written) == recipe
    of_pairs = write(objective={"name": "dpo"}, data={"groups": None, "pairs": "rows.jsonl"})
    resolved = yaml.safe_load(resolved_yaml(load_recipe(of_pairs)))
    assert {"groups", "label", "advantage"}.isdisjoint(resolved["data"])


def test_a_world_says_how_its_scores_become_labels(tmp_path: Path) -> None:
    nodes = {
        "model": {"model_name_or_path": "world:sums"},
        "roles": {"reference": "start"},
        "data": {"groups": "world:sums"},
        "objective": {"name": "gepo"},
        "evaluate": {"suite": ["sums"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(nodes))
    recipe = load_recipe(path)
    assert recipe.data.label is not None
    assert (recipe.data.label.above, recipe.data.advantage) == (0.5, "mean")
    assert recipe.data.sample is not None
    nodes["model"] = {"model_name_or_path": "world:styles"}
    path.write_text(yaml.safe_dump(nodes))
    with pytest.raises(AlignError, match=r"data\.groups: world:sums is asked of its own model"):
        load_recipe(path)
