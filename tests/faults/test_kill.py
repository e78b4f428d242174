"""`align train` killed and run again ends where the uninterrupted run ends, byte by byte."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = ["red", "blue", "old", "new", "cat", "dog", "bird", "sees", "likes", "finds"]


def rows(path: Path, n: int) -> Path:
    choose = random.Random(0)

    def text(length: int) -> str:
        return " ".join(choose.choice(WORDS) for _ in range(length))

    with path.open("w") as file:
        for i in range(n):
            row = {"prompt": f"Say {i}", "chosen": text(5), "rejected": text(7)}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def command(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
model: {{model_name_or_path: world:bytes}}
roles: {{reference: start}}
data: {{pairs: {rows(tmp_path / "rows.jsonl", 64)}, held_out: 8}}
objective: {{name: rpo, beta: 0.1, eta: 0.1}}
train: {{learning_rate: 1.0e-3, max_steps: 40, per_device_train_batch_size: 4, save_steps: 4,
         logging_steps: 3, gradient_checkpointing: false, disable_tqdm: true}}
"""
    )

    def start(run: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "align.app.cli", "train", str(recipe), "--run", str(run)],
            env=os.environ | {"ALIGN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen) -> int:
    _, error = process.communicate(timeout=300)
    assert "Traceback" not in error, error[-2000:]
    return process.returncode


def result(run: Path) -> tuple:
    metrics = json.loads((run / "metrics.json").read_text())
    clocks = ("train_runtime", "train_loss")
    history = [
        {k: v for k, v in row.items() if k not in clocks and not k.endswith("per_second")}
        for row in json.loads((run / "log_history.json").read_text())
    ]
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    return weights, metrics["before"], metrics["after"], metrics["data"], history


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.e2e
def test_killed_and_terminated_runs_end_as_the_uninterrupted_one(command, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    assert finish(command(straight)) == 0

    cut = tmp_path / "cut"
    killed = command(cut)
    wait_for(cut / "checkpoints" / "checkpoint-8", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (cut / "metrics.json").exists()
    terminated = command(cut)
    wait_for(cut / "checkpoints" / "checkpoint-16", terminated)
    terminated.send_signal(signal.SIGTERM)
    _, said = terminated.communicate(timeout=60)
    assert terminated.returncode == 75, said
    assert "Run the same command again to go on" in said
    assert finish(command(cut)) == 0

    assert result(cut) == result(straight)
