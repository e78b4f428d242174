from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from align.app.diffusion_recipe import (
    DiffusionRecipe,
    diffusion_key,
    diffusion_yaml,
    load_diffusion_recipe,
    trains_diffusion,
)
from align.diffusion.objectives import DiffusionSFT, SePPO
from align.errors import RecipeError

TINY: dict[str, Any] = {
    "model": {"model_name_or_path": "world:shapes"},
    "data": {"records": "world:shapes"},
    "objective": {"name": "seppo", "beta": 40},
    "train": {"sampler": {"guidance_scale": 1}},
    "evaluate": {"suite": ["shapes"]},
}


def test_every_recipe_of_the_folder_loads_and_comes_back(root: Path) -> None:
    files = sorted((root / "recipes" / "seppo").glob("*.yaml"))
    assert [file.stem for file in files] == ["sd15-pickapic", "sdxl-lora", "tiny"]
    for file in files:
        recipe = load_diffusion_recipe(file)
        assert DiffusionRecipe(**yaml.safe_load(diffusion_yaml(recipe))) == recipe
        assert isinstance(recipe.objective, SePPO)


def test_defaults_are_the_published_schedule() -> None:
    recipe = DiffusionRecipe(**TINY)
    assert (recipe.train.rounds, recipe.train.updates_per_round) == (7, 30)
    assert recipe.train.max_steps == 210
    assert recipe.objective == SePPO(beta=40)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("model", {"model_name_or_path": "world:circles"}, "no built-in diffusion model"),
        ("model", {"dtype": "bfloat16"}, "mixed"),
        ("model", {"dtype": "bfloat16", "use_peft": True}, "bf16: true"),
        ("model", {"lora_rank": 4}, "lora_rank"),
        ("data", {"records": "rows.jsonl"}, "its own model and images"),
        ("data", {"resolution": 13}, "multiple of 8"),
        ("objective", {"name": "dpo"}, "diffusion_dpo"),
        ("objective", {"beta": 0}, "greater than 0"),
        ("train", {"timestep_range": [0.5, 0.2]}, "the smaller one first"),
        ("train", {"warmup_steps": 210}, "as long as the whole run"),
        ("train", {"sampler": {"guidance_scale": 7.5}}, "captions throughout"),
        ("evaluate", {"suite": ["shapes", "shapes"]}, "stands twice"),
        ("evaluate", {"suite": ["clip"]}, "denoising"),
    ],
)
def test_what_cannot_stand_is_refused(section: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DiffusionRecipe(**{**TINY, section: {**TINY[section], **change}})


def test_the_key_names_what_is_trained() -> None:
    recipe = DiffusionRecipe(**TINY)
    pushed = DiffusionRecipe(**TINY, hub={"repo": "me/it", "push": True})
    other = DiffusionRecipe(**{**TINY, "objective": {"name": "seppo", "beta": 41}})
    assert diffusion_key(recipe) == diffusion_key(pushed) != diffusion_key(other)


def test_a_file_is_loaded_with_overrides(root: Path) -> None:
    tiny = root / "recipes" / "seppo" / "tiny.yaml"
    assert trains_diffusion(tiny)
    assert not trains_diffusion(root / "recipes" / "dpo" / "tiny.yaml")
    recipe = load_diffusion_recipe(tiny, ["train.learning_rate=1e-5", "objective.beta=7"])
    assert recipe.train.learning_rate == 1e-5
    assert recipe.objective == SePPO(beta=7)
    other = load_diffusion_recipe(tiny, ["objective.name=diffusion_sft"])
    assert other.objective == DiffusionSFT()


def test_everything_wrong_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "model: {model_name_or_path: world:shapes}\n"
        "data: {records: world:shapes}\n"
        "objective: {name: seppo, bta: 40}\n"
        "train:\n"
        "  roundz: 3\n"
        "  learning_rate: fast\n"
        "  sampler: {guidance_scale: 1, stepz: 3}\n"
        "evaluate: {suite: [shapes], n: '7'}\n"
        "extra: 1\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_diffusion_recipe(file)
    text = str(caught.value)
    for line, key, hint in (
        (3, "objective.bta", "beta"),
        (5, "train.roundz", "rounds"),
        (6, "train.learning_rate", "found fast"),
        (7, "train.sampler.stepz", "steps"),
        (8, "evaluate.n", "integer"),
        (9, "extra", "no such key"),
    ):
        [said] = [row for row in text.splitlines() if f"{key}:" in row]
        assert said.startswith(f"{file}:{line}: ")
        assert hint in said
    file.write_text("model: {model_name_or_path: a}\nobjective: {name: seppo}\ndata: {}\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml:3: data\.records: is missing"):
        load_diffusion_recipe(file)
    file.write_text(
        "model: {model_name_or_path: world:shapes}\nobjective: {name: seppo}\n"
        "data: {records: world:shapes}\n"
    )
    with pytest.raises(RecipeError, match=r"train\.sampler\.guidance_scale: world:shapes was"):
        load_diffusion_recipe(file)
