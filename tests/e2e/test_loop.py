"""`align loop` through its real command: adapters, and training in processes of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from align.app.cli import main
from align.runs.manifest import damage
from tests import tiny_loops

pytestmark = pytest.mark.e2e

LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("start"))


class Command:
    def __init__(self, root: Path, folder: Path, start: Path, capsys: Any) -> None:
        self.root, self.folder, self.start, self.capsys = root, folder, start, capsys
        tiny_loops.build_rows(folder)

    def words(self, run: str, changes: dict[str, Any]) -> list[str]:
        recipe = tiny_loops.write_recipe(self.folder, self.start, **changes)
        return ["loop", str(recipe), "--run", run]

    def begin(self, run: str, **changes: Any) -> subprocess.Popen[str]:
        """In a process of its own, which can be killed."""
        return subprocess.Popen(
            [sys.executable, "-m", "align.app.cli", *self.words(run, changes)],
            cwd=self.folder,
            env=tiny_loops.environment(self.root, self.folder / "cache"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, run: str, **changes: Any) -> tuple[int, str]:
        """Exit code, and all that was said; what is launched has processes of its own."""
        code: Any = 0
        try:
            main(self.words(run, changes))
        except SystemExit as stop:
            code = stop.code
        said = self.capsys.readouterr()
        return code, said.out + said.err


@pytest.fixture
def align(
    root: Path,
    tmp_path: Path,
    start: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    monkeypatch.chdir(tmp_path)
    for name, value in tiny_loops.environment(root, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return Command(root, tmp_path, start, capsys)


def test_a_loop_of_adapters_ends_with_an_adapter_and_is_then_finished(
    align: Command, tmp_path: Path, start: Path
) -> None:
    changes = {"model": LORA, "hub": {"repo": "someone/some-loop", "dry_run": True}}
    code, said = align("run", **changes)
    assert code == 0, said
    assert "someone/some-loop" in said
    run = tmp_path / "run"
    assert damage(run / "model") is None
    card = (run / "model" / "README.md").read_text()
    assert "This repository holds a LoRA adapter" in card
    assert "| margin, nats |" in card
    for name in ("model/README.md", "metrics.json", "history.json"):
        assert str(tmp_path) not in (run / name).read_text(), "a folder of this machine"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["before"]["preference/margin"]["value"] == 0
    assert metrics["after"]["preference/margin"]["value"] != 0
    assert metrics["n"] == 4
    newest = load_file(run / "rounds/0003/04-train/policy/adapter_model.safetensors")
    published = load_file(run / "model/adapter_model.safetensors")
    assert all(torch.equal(published[name], newest[name]) for name in newest)

    ledger = (run / "ledger.jsonl").read_bytes()
    code, said = align("run", **changes)
    assert (code, "nothing to do" in said) == (0, True)
    assert (run / "ledger.jsonl").read_bytes() == ledger


# Plain SGD, because Adam's first steps make much of a gradient's last bits.
TRAIN = {"optim": "sgd", "learning_rate": 0.3, "gradient_checkpointing": False}


def launched(root: Path, **train: Any) -> dict[str, Any]:
    config = str(root / "recipes/accelerate/cpu-2.yaml")
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    return {
        "each_round": [*stages[:3], {"run": "train", "launch": config}],
        "rounds": 2,
        "train": {**TRAIN, "per_device_train_batch_size": 1, **train},
        "objective": {"name": "nash_mp"},
        "roles": {"reference": "previous_round", "anchor": "ema:0.5"},
    }


def test_training_on_two_processes_equals_training_on_one(
    align: Command, root: Path, tmp_path: Path, start: Path
) -> None:
    two = launched(root)
    code, said = align("two", **two)
    assert code == 0, said
    one = two | {
        "each_round": [dict(stage) for stage in tiny_loops.STAGES],
        "train": {**TRAIN, "per_device_train_batch_size": 2},
    }
    code, said = align("one", **one)
    assert code == 0, said
    place = "rounds/000{}/04-train/{}/model.safetensors"
    before = load_file(start / "model.safetensors")
    for number in (1, 2):
        for kind in ("policy", "anchor"):
            a, b = (
                load_file(tmp_path / run / place.format(number, kind)) for run in ("one", "two")
            )
            for name in a:
                torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)
            assert max((a[name] - before[name]).abs().max() for name in a) > 1e-3


def test_what_stops_a_launched_training_is_said_by_the_loop(align: Command, root: Path) -> None:
    changes = launched(root, learning_rate=1.0, max_grad_norm=0, num_train_epochs=20)
    # A margin of 1/(2 eta) = 500,000 nats is aimed at.
    changes |= {"objective": {"name": "inpo", "eta": 1e-6, "tau": 1e-9}}
    changes |= {"roles": {"reference": "start", "previous": "round_start"}}
    code, said = align("run", **changes)
    assert code == 5, said
    last = said.splitlines()[-1]
    assert last.startswith("Step ")
    assert "not a number" in last or "gradient's norm is" in last


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGKILL"])
def test_no_launched_process_outlives_its_loop(
    align: Command, root: Path, tmp_path: Path, sent: str
) -> None:
    # Long enough to be in the middle of it.
    process = align.begin("run", **launched(root, max_steps=100_000, save_steps=50))
    checkpoints = "rounds/0001/.04-train*scratch/checkpoints/checkpoint-*"
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run").glob(checkpoints)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    process.send_signal(getattr(signal, sent))
    _, said = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    if sent == "SIGTERM":
        assert process.returncode == 75, said
        last = said.splitlines()[-1]
        assert "Stopped by" in last
        assert "a checkpoint is kept. Run the same command again" in last
