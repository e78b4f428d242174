"""A rate that cannot move 16-bit weights is refused before anything is drawn, read or trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from align.app.check_loop import check_loop
from align.app.check_recipe import check_recipe
from align.app.train import train_recipe
from align.errors import RecipeError
from align.policies.precision import median_magnitude, refuse_rate_of
from align.recipe import Model, Train
from tests import tiny_loops, tiny_models

SLOW: dict[str, Any] = {"learning_rate": 5e-7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.build_llama(tmp_path_factory.mktemp("policy"))


def refuse(folder: Path, *, rate: float = 5e-7, train: Any = None, **model: Any) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder).config
    given: dict[str, Any] = {"dtype": "bfloat16"} | model
    section = Model(model_name_or_path=str(folder), **given)
    refuse_rate_of(section, Train(learning_rate=rate, **(train or {})), str(folder), config)


def test_it_is_known_from_the_files(folder) -> None:
    with pytest.raises(RecipeError) as caught:
        refuse(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).parameters()
    assert f"median |w| of {median_magnitude(weights):.3g}," in str(caught.value)
    others: list[dict[str, Any]] = [
        {"rate": 1e-3},
        {"dtype": "float32"},
        {"dtype": "auto"},
        {"use_peft": True},
        {"train": {"optim": "sgd"}},
    ]
    for fine in others:
        refuse(folder, **fine)


def test_auto_is_the_type_they_were_saved_in(folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").config
    section = Model(model_name_or_path=str(tmp_path), dtype="auto")
    with pytest.raises(RecipeError, match="5e-07 cannot move"):
        refuse_rate_of(section, Train(**SLOW), str(tmp_path), config)


def test_of_weights_that_are_not_here_nothing_is_said(folder) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder).config
    section = Model(model_name_or_path="nobody/nothing", dtype="bfloat16")
    refuse_rate_of(section, Train(**SLOW), "nobody/nothing", config)


def written(tmp_path: Path, folder: Path, **more: Any) -> Path:
    recipe = tmp_path / "recipe.yaml"
    sections = {
        "model": {"model_name_or_path": str(folder), "dtype": "bfloat16"},
        "data": {"pairs": str(tmp_path / "nowhere.jsonl")},
        "train": SLOW,
    }
    recipe.write_text(yaml.safe_dump(sections | more))
    return recipe


@pytest.mark.parametrize(
    "more",
    [{"objective": {"name": "dpo"}, "roles": {"reference": "start"}}, {"kind": "reward"}],
    ids=str,
)
def test_check_and_train_say_so_before_they_read_rows(tmp_path, folder, more) -> None:
    recipe = written(tmp_path, folder, **more)
    with pytest.raises(RecipeError, match="5e-07 cannot move"):
        check_recipe(recipe, [])
    with pytest.raises(RecipeError, match="5e-07 cannot move"):
        train_recipe(recipe, [], tmp_path / "run", ())


def test_a_loop_says_so_before_its_first_round(recipe_of) -> None:
    changes = {"model": {"dtype": "bfloat16"}, "train": tiny_loops.TRAIN | SLOW}
    with pytest.raises(RecipeError, match="5e-07 cannot move"):
        check_loop(recipe_of(**changes), show_example=False)


def test_a_launch_that_shards_keeps_copies_in_float32(recipe_of, root) -> None:
    nodes = [dict(stage) for stage in tiny_loops.STAGES]
    changes = {"model": {"dtype": "bfloat16"}, "train": tiny_loops.TRAIN | SLOW}
    for launch, refused in (("ddp", True), ("fsdp2", False)):
        nodes[-1]["launch"] = str(root / f"recipes/accelerate/{launch}.yaml")
        loop = recipe_of(each_round=nodes, **changes)
        if not refused:
            check_loop(loop, show_example=False)
            continue
        with pytest.raises(RecipeError, match="5e-07 cannot move"):
            check_loop(loop, show_example=False)
