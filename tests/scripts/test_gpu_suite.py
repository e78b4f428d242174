"""The GPU suite runs small on a CPU, and what one part does wrong does not reach the others."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("gpu_run", SCRIPTS / "gpu" / "run.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def part(monkeypatch: pytest.MonkeyPatch, name: str, measure: Any) -> None:
    module = types.ModuleType(f"gpu_{name}")
    module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"gpu_{name}", module)


def test_parts_that_fail_or_are_passed_over(suite, monkeypatch, tmp_path, capsys) -> None:
    def fails(setting: Any) -> None:
        raise ValueError("a kernel\nis wrong")

    def misses(setting: Any) -> None:
        from gpu_stand import needs

        needs("torch", "no_such_package")

    part(monkeypatch, "first", fails)
    part(monkeypatch, "second", misses)
    part(monkeypatch, "third", lambda setting: {"rows": [{"x": 0.5}, {"x": None, "y": 2}]})
    monkeypatch.setattr(suite, "CALLS", {1: {"first": 9, "second": 9, "third": 9}, 2: {"third": 9}})
    words = ["--call", "1", "2", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert suite.main(words) == 1
    first, second, third = json.loads((tmp_path / "call-1.json").read_text())
    assert (first["status"], first["why"]) == ("failed", "ValueError: a kernel is wrong")
    assert (second["status"], second["why"]) == ("skipped", "not installed here: no_such_package")
    assert third["status"] == "ok"
    assert third["found"] == {"rows": [{"x": 0.5}, {"x": None, "y": 2}]}
    assert len(json.loads((tmp_path / "call-2.json").read_text())) == 1
    shown = capsys.readouterr().out
    assert "[failed] first" in shown
    assert "  rows: x | y\n    0.5 | -\n    - | 2\n" in shown
    assert suite.main([*words, "--only", "third"]) == 0


def test_a_part_that_takes_too_long_leaves_what_it_noted(suite, tmp_path) -> None:
    asked = argparse.Namespace(device="cpu", tiny=True, out=tmp_path)
    suite.noted("environment", asked).write_text('{"ms": 1.5}\n{"ms": 2.5}\n')
    row = suite.in_a_process("environment", asked, 1)
    assert (row["status"], row["why"]) == ("timed out", "after 1 s")
    assert row["found"] == {"so_far": [{"ms": 1.5}, {"ms": 2.5}]}
    assert row["seconds"] < 30


def test_a_call_fits_into_ten_minutes(suite) -> None:
    for parts in suite.CALLS.values():
        assert sum(parts.values()) <= 570


@pytest.mark.e2e
def test_the_whole_suite_small_on_a_cpu(tmp_path: Path, monkeypatch) -> None:
    from align.objectives import AnyGroupObjective, AnyObjective

    command = [SCRIPTS / "gpu_suite.sh", "all", "--device", "cpu", "--tiny"]
    monkeypatch.setenv("OUT", str(tmp_path))
    parts = [
        "environment kernels objectives resuming gap",
        "attention passes throughput",
        "learning movement sharding budget",
    ]
    run = subprocess.run(
        ["bash", *command, "--only", *" ".join(parts).split()], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    found: dict[str, Any] = {}
    for call, names in enumerate(parts, start=1):
        rows = json.loads((tmp_path / f"call-{call}.json").read_text())
        assert [row["part"] for row in rows] == names.split()
        # Bitsandbytes is not everywhere.
        assert {row["status"] for row in rows if row["part"] != "learning"} == {"ok"}
        found |= {row["part"]: row["found"] for row in rows}

    assert "window_size" in found["environment"]["varlen_parameters"]
    kernels = found["kernels"]["kernels"]
    for row in kernels:
        if row["backend"] == "tree_varlen":
            assert "does not compute in float32" in row["why"]
        else:
            assert row["output"] < 1e-5
    assert max(kernels[0][f"gradient_{name}"] for name in "qkv") < 1e-5
    assert [row["dtype"] for row in found["kernels"]["gather"]] == ["float32", "bfloat16"]

    names = {row["objective"] for row in found["objectives"]["objectives"]}
    members = {
        member.model_fields["name"].default
        for union in (AnyObjective, AnyGroupObjective)
        for member in union.__origin__.__args__
    }
    # `sum` is no objective without others.
    assert members - names == {"sum"}
    assert found["objectives"]["failed"] == []
    for row in found["objectives"]["objectives"]:
        assert abs(row["turned_autocast"]) < 0.01
        assert abs(row["turned_pure"]) < 0.01
    (resumed,) = found["resuming"]["resuming"]
    assert resumed["again_equal"]
    assert resumed["resumed_equal"]
    for row in found["gap"]["gaps"]:
        assert sum(row["histogram"]) > 50
        assert row["rms"] < 1e-3
    assert {row["way"] for row in found["attention"]["layer"]} == {
        "tree_varlen",
        "tree_flex",
        "dense",
    }
    for row in found["passes"]["passes"]:
        assert row["pairs_per_second"] > 0
        assert row["foretold_gib"] > 0
    assert {row["baseline"] for row in found["throughput"]["ratios"]} == {"trl", "packed"}
    for row in found["throughput"]["ratios"]:
        assert row["tokens"] > 1
        assert row["loss_gap"] < 1e-3
    if found["learning"]:
        assert found["learning"]["losses_after"][-1] < found["learning"]["evaluated"]
    share = {(row["rate"], row["adapter"]): row["share"] for row in found["movement"]["movement"]}
    # A begins at its full size, whose steps in bfloat16 are coarser than the update; B at zero.
    assert share[5e-6, "A"] < 0.5
    assert share[5e-6, "B"] == pytest.approx(1, abs=0.05)
    (sharded,) = found["sharding"]["one_rank"]
    assert sharded["gradient"] < 1e-6
    assert found["budget"]["budget"] > 64
    assert "the longest pair" in found["budget"]["refusal"]
