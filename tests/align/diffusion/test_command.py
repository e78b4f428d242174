"""The world's recipe through the command, on a base model of a few steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align.app.diffusion import train_diffusion
from align.app.diffusion_recipe import (
    DiffusionRecipe,
    diffusion_yaml,
    load_diffusion_recipe,
)
from align.diffusion.trainer import DiffusionTrainer
from align.errors import Interrupted, RecipeError
from align.loops.signals import StopSignal
from align.runs.folder import RunFolder
from align.runs.ledger import read_records
from align.runs.manifest import damage
from align.worlds import shapes


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    small = shapes.ShapesSettings(channels=(8, 8), images=32, steps=3, batch=8, times=20)
    monkeypatch.setattr(shapes, "ShapesSettings", lambda: small)


@pytest.fixture
def recipe(root: Path) -> DiffusionRecipe:
    changes = (
        "train.rounds=2", "train.updates_per_round=2", "train.pool_size=4", "train.sampler.steps=2",
        "train.per_device_train_batch_size=4", "data.limit=24", "data.held_out=6", "evaluate.n=6",
        "evaluate.pictures=4",
    )  # fmt: skip
    return load_diffusion_recipe(root / "recipes" / "seppo" / "tiny.yaml", changes)


def leaves_what_it_promises(run: RunFolder, metrics: dict[str, Any] | None) -> None:
    assert metrics == json.loads((run.path / "metrics.json").read_text())
    assert metrics is not None
    assert metrics["data"] == {"read": 24, "kept": 24, "dropped": {}, "train": 18, "held_out": 6}
    keys = {"shapes/reward", "shapes/red", "shapes/quality", "denoising/chosen_error"}
    assert keys <= metrics["before"].keys() == metrics["after"].keys()
    assert metrics["training"]["updates"] == 4
    assert 0 <= metrics["training"]["flip_rate"] <= 1
    assert damage(run.model) is None
    assert (run.model / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert "seppo" in (run.model / "README.md").read_text()
    assert str(run.path) not in (run.model / "README.md").read_text()
    steps = [record["step"] for record in read_records(run.path / "ledger.jsonl")]
    assert steps == ["base", "latents", "before", "train", "after"]
    # Four pictures of 8 x 8, six times enlarged, with margins of 2.
    before, after = (np.asarray(Image.open(run.path / f"{n}.png")) for n in ("before", "after"))
    assert before.shape == after.shape == (102, 102, 3)
    assert not np.array_equal(before, after)


def test_a_stopped_run_goes_on(recipe, tmp_path, monkeypatch) -> None:
    straight = RunFolder(tmp_path / "whole")
    whole = train_diffusion(recipe, straight)
    leaves_what_it_promises(straight, whole)
    run = RunFolder(tmp_path / "run")
    update = DiffusionTrainer._update

    def stopping(self, *args) -> None:
        update(self, *args)
        if self.step == 1:
            signal.requested = "SIGTERM"

    signal = StopSignal()
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "_update", stopping)
        patch.setattr("align.app.diffusion.StopSignal", lambda: signal)
        with pytest.raises(Interrupted, match="after update 1 of 4"):
            train_diffusion(recipe, run)
    assert run.read_json("metrics.json") is None
    assert train_diffusion(recipe, run) == whole
    names = ("unet/diffusion_pytorch_model.safetensors",)
    for name in names:
        assert (run.model / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_another_recipe_does_not_take_the_folder(recipe, tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(diffusion_yaml(recipe))
    run.checkpoints.mkdir()
    run.release()
    other = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"beta": 1})})
    with pytest.raises(RecipeError, match="run of another recipe"):
        train_diffusion(other, run)
