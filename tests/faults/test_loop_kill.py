"""A loop in a process of its own, killed at random moments, ends as the uninterrupted one."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from align.runs.manifest import damage

KILLS = 30
DOUBLES = 5  # of them killed once more while they recover
PLACES = 8  # different ones: spread over the loop, or it was no test of it
SECONDS = 0.004  # of pretended work per call and per training step


@pytest.fixture(scope="module")
def script(root: Path) -> Path:
    return root / "tests/align/loops/fake_loop.py"


@pytest.fixture(scope="module")
def fake(script: Path) -> ModuleType:
    spec = spec_from_file_location("fake_loop", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fake_loop"] = module
    spec.loader.exec_module(module)
    return module


class Runner:
    """Starts the loop's script."""

    def __init__(self, root: Path, script: Path) -> None:
        self.command = [sys.executable, str(script)]
        self.environment = os.environ | {"PYTHONPATH": str(root)}

    def start(self, folder: Path, pause: float = SECONDS) -> subprocess.Popen[str]:
        """Returns when the loop is about to begin."""
        process = subprocess.Popen(
            [*self.command, str(folder), "3", str(pause)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    def finish(self, folder: Path) -> float:
        """Runs to the end; the seconds that the loop took."""
        process = self.start(folder)
        started = time.monotonic()
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return time.monotonic() - started

    def kill(self, folder: Path, after: float) -> bool:
        """Whether the process was still there to be killed."""
        process = self.start(folder)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL


def acknowledged(folder: Path) -> set[str]:
    """Keys that the call store holds."""
    if not (folder / "calls.sqlite").exists():
        return set()
    with sqlite3.connect(folder / "calls.sqlite") as store:
        tables = store.execute("SELECT name FROM sqlite_master").fetchall()
        keys = store.execute("SELECT key FROM calls").fetchall() if tables else []
    store.close()
    return {key for (key,) in keys}


def calls(served: Path) -> list[str]:
    return served.read_text().splitlines() if served.exists() else []


@pytest.mark.e2e
def test_killed_at_30_random_moments_it_ends_as_if_it_had_not_been(
    fake: ModuleType, script: Path, root: Path, tmp_path: Path
) -> None:
    runner = Runner(root, script)
    straight = tmp_path / "straight"
    duration = runner.finish(straight)
    expected, history = fake.files(straight), fake.history(straight)
    asked = calls(fake.served(straight))
    choose = random.Random(20)
    where: Counter[str] = Counter()
    killed = doubles = tries = 0
    while killed < KILLS or doubles < DOUBLES or len(where) < PLACES:
        # What a random moment finds depends on the machine's load.
        tries += 1
        assert tries <= 4 * KILLS, f"killed {killed} times, {doubles} of them twice, at {where}"
        folder = tmp_path / f"cut-{tries}"
        served, deaths, left = fake.served(folder), 0, duration
        # Every second one is killed again while it recovers, within what then remains.
        for _ in range(1 + tries % 2):
            after = choose.uniform(0, left)
            if not runner.kill(folder, after):
                break
            left = (left - after) / 2
            deaths += 1
            where[_place(folder)] += 1
            for stage in folder.glob("rounds/*/[0-9]*"):
                assert damage(stage) is None, stage
            known, so_far = acknowledged(folder), len(calls(served))
        killed, doubles = killed + deaths, doubles + (deaths == 2)
        runner.finish(folder)
        assert fake.files(folder) == expected
        assert fake.history(folder) == history
        assert list(dict.fromkeys(calls(served))) == asked
        if deaths:
            assert not known & set(calls(served)[so_far:])
        assert len(calls(served)) <= len(asked) + deaths
        shutil.rmtree(folder)
        served.unlink()


def _place(folder: Path) -> str:
    """The newest thing that a killed run left."""
    made = sorted(p.relative_to(folder).as_posix() for p in folder.glob("rounds/*/*"))
    return made[-1] if made else "nothing"


@pytest.mark.e2e
def test_terminated_it_leaves_with_the_code_that_says_resumable(
    fake: ModuleType, script: Path, root: Path, tmp_path: Path
) -> None:
    runner = Runner(root, script)
    runner.finish(tmp_path / "straight")
    for made in ("rounds/0001/02-judge", "rounds/0002/01-generate"):
        process = runner.start(tmp_path / "cut", pause=0.05)
        while not (tmp_path / "cut" / made).exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
        # The script lets the error through; `align` itself leaves with its exit code, 75.
        assert process.returncode == 1
        assert "align.errors.Interrupted: Stopped by SIGTERM before stage" in error
    runner.finish(tmp_path / "cut")
    assert fake.files(tmp_path / "cut") == fake.files(tmp_path / "straight")
