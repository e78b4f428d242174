"""A loop that measures nothing still ends with its model, its metrics and its card."""

import json
from pathlib import Path

import pytest

from align.app.cli import main
from align.runs.manifest import damage
from tests import tiny_loops


def test_a_loop_with_an_empty_suite_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    start = tiny_loops.build_policy(tmp_path / "start")
    tiny_loops.build_rows(tmp_path)
    recipe = tiny_loops.write_recipe(tmp_path, start, rounds=1, evaluate={"suite": []})
    main(["loop", str(recipe), "--run", "run"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["before"], metrics["after"], metrics["n"]) == ({}, {}, 0)
    assert damage(tmp_path / "run" / "model") is None
    assert (tmp_path / "run" / "model" / "README.md").is_file()
