"""The tiny recipe as it stands: what it must show on every seed, here on one."""

import json
from pathlib import Path

import pytest

from align.app.diffusion import train_diffusion
from align.app.diffusion_recipe import load_diffusion_recipe
from align.runs.folder import RunFolder


@pytest.mark.e2e
def test_tiny_recipe(root: Path, tmp_path: Path) -> None:
    recipe = load_diffusion_recipe(root / "recipes" / "seppo" / "tiny.yaml")
    run = RunFolder(tmp_path / "run")
    metrics = train_diffusion(recipe, run)
    assert metrics is not None
    before, after = metrics["before"], metrics["after"]
    assert -0.1 < before["shapes/reward"]["value"] < 0.1
    gain = after["shapes/reward"]["value"] - before["shapes/reward"]["value"]
    kept = after["shapes/quality"]["value"] / before["shapes/quality"]["value"]
    assert gain >= 0.10
    assert kept >= 0.85
    assert 0.05 < metrics["training"]["flip_rate"] < 0.7
    log = json.loads((run.path / "log_history.json").read_text())
    assert log[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert len({entry["reference"] for entry in log}) > 2
