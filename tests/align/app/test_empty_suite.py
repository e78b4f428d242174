"""A loop that measures nothing still ends with its model, its metrics and its card."""

import json
from pathlib import Path

import pytest
import yaml

from align.app.cli import main
from align.runs.manifest import damage
from tests import tiny_loops


def test_a_loop_with_an_empty_suite_ends_and_shows_its_rounds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    start = tiny_loops.build_policy(tmp_path / "start")
    tiny_loops.build_rows(tmp_path)
    recipe = tiny_loops.write_recipe(tmp_path, start, rounds=1, evaluate={"suite": []})
    main(["loop", str(recipe), "--run", "run"])
    printed = capsys.readouterr()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["before"], metrics["after"], metrics["n"]) == ({}, {}, 0)
    assert damage(tmp_path / "run" / "model") is None
    assert (tmp_path / "run" / "model" / "README.md").is_file()
    pairs = [json.loads(line) for line in _rows(tmp_path, "pairs")]
    judged = [json.loads(line) for line in _rows(tmp_path, "judged")]
    scores = [score for row in judged for score in row["scores"] if score is not None]
    longer = [len(p["chosen"][0]["content"]) > len(p["rejected"][0]["content"]) for p in pairs]
    table = {
        cells[1].strip().partition("  ")[0]: cells[2].strip()
        for line in printed.out.splitlines()
        if len(cells := line.strip("│").split("│")) == 3
    }
    assert table["completions"] == str(len(scores))
    assert table["mean score"] == f"{sum(scores) / len(scores):.3g}"
    assert table["chosen longer"] == f"{sum(longer) / len(longer):.3g}"
    assert int(table["kept"]) == len(pairs)
    assert "Before and after training" not in printed.out, "no empty table of measures"
    # The round's line says the same while the loop runs.
    assert f"mean score {table['mean score']}" in printed.err
    assert f"kept {len(pairs)}, " in printed.err
    assert f"chosen longer {table['chosen longer']}, kept {len(pairs)}, " in printed.err
    assert f"ties {table['ties']}" in printed.err


def _rows(folder: Path, kind: str) -> list[str]:
    (path,) = (folder / "run" / "rounds" / "0001").glob(f"[0-9]*/{kind}/rows.jsonl")
    return path.read_text().splitlines()


def test_a_training_that_measures_nothing_shows_its_counts_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    start = tiny_loops.build_policy(tmp_path / "start")
    tiny_loops.build_rows(tmp_path)
    recipe = {
        "model": {"model_name_or_path": str(start)},
        "data": {"pairs": "eval.jsonl", "held_out": 0},
        "roles": {"reference": "start"},
        "objective": {"name": "dpo", "beta": 0.1},
        "train": tiny_loops.TRAIN,
        "evaluate": {"suite": []},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    main(["train", "train.yaml", "--run", "run"])
    log = json.loads((tmp_path / "run" / "log_history.json").read_text())
    losses = [(row["step"], row["loss"]) for row in log if "loss" in row]
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "loss" in line]
    for step, loss in (losses[0], losses[-1]):
        assert f"{loss:.4g} (step {step})" in line
    assert "measured nothing" in printed
    assert "train 4" in printed
