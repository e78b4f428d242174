"""72 hours of a loop on a virtual clock: nothing grows but what is meant to."""

import gc
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align.errors import Interrupted
from align.loops.stage import StageContext
from align.runs.ledger import read_records

ROUNDS = 1000
KEEP = 3
ROUND_SECONDS = 72 * 3600 / ROUNDS
POLICY_BYTES = 5000


class Fault(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


class Small:
    """A stage of a small round: a file for each kind, an object in memory, sometimes a fault."""

    version = 1

    def __init__(
        self, name: str, reads: tuple[str, ...], writes: tuple[str, ...], world: "World"
    ) -> None:
        self.name, self.reads, self.writes, self._world = name, reads, writes, world

    def settings(self) -> Mapping[str, Any]:
        return {}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        self._world.clock.now += ROUND_SECONDS / 2
        live = context.take(self.reads[0])
        if live is not None:
            context.put_back(self.reads[0], live)
        for kind in self.writes:
            size = POLICY_BYTES if kind == "policy" else 100
            content = f"{kind} {context.seed:032}".encode().ljust(size, b".")
            (context.output(kind) / "content").write_bytes(content)
            context.keep(kind, content)
        self._world.before_the_end_of(context)
        return {"bytes": size}


class World:
    """Injects a fault about every tenth round, of a random kind, at a random stage."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.choose = random.Random(72)
        self.faults: Counter[str] = Counter()
        self.measured: dict[int, tuple[int, int, int]] = {}
        self._reached = 0

    def before_the_end_of(self, context: StageContext) -> None:
        """Called at the end of each stage's work; a stage that is made again gets no fault."""
        step = 2 * context.round + (not context.folder.name.startswith(".01"))
        if step <= self._reached:
            return
        self._reached = step
        if step % 2 == 0 and context.round % 100 == 0:
            self.measure(context.round)
        if self.choose.random() >= 0.05:
            return
        kind = self.choose.choice(["error", "full", "signal", "damage", "torn"])
        self.faults[kind] += 1
        if kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind == "full":
            raise OSError(28, "No space left on device")
        else:
            if kind == "damage":
                newest = sorted(self.folder.glob("rounds/*/02-train/policy/content"))[-1:]
                for path in newest:
                    path.write_bytes(path.read_bytes()[:-1])
            if kind == "torn":
                with (self.folder / "ledger.jsonl").open("ab") as ledger:
                    ledger.write(b'{"sha256": "12')
            raise Fault(kind)

    def measure(self, number: int) -> None:
        """Memory [bytes], open files, threads."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        self.measured[number] = (
            pages * os.sysconf("SC_PAGE_SIZE"),
            files,
            threading.active_count(),
        )


@pytest.fixture(scope="module")
def fake(root: Path) -> ModuleType:
    spec = spec_from_file_location("fake_loop", root / "tests/align/loops/fake_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fake_loop"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.e2e
def test_a_thousand_rounds_with_faults_leak_nothing_and_end_as_without(
    fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("align.loops.engine.time.monotonic", clock)
    monkeypatch.setattr("align.runs.ledger.time.time", clock)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    folder = tmp_path / "loop"
    world = World(folder, clock)
    chain = [
        Small("generate", ("policy",), ("completions",), world),
        Small("train", ("policy@round_start", "completions", "policy@previous_round"),
              ("policy",), world),
    ]  # fmt: skip
    started = clock.now
    interrupted = 0
    while True:
        try:
            fake.run(folder, rounds=ROUNDS, each_round=chain, keep=KEEP)
            break
        except (Fault, OSError, Interrupted):
            interrupted += 1
    assert clock.now - started >= 72 * 3600
    assert interrupted > 70
    assert set(world.faults) == {"error", "full", "signal", "damage", "torn"}

    memory, open_files, threads = zip(*world.measured.values(), strict=True)
    assert len(memory) == 10
    assert memory[-1] < 1.05 * memory[0], memory
    assert len(set(open_files)) == 1
    assert len(set(threads)) == 1

    # Disk: the bulky artefacts of the last rounds, of every round a manifest and what is small.
    bulky = sorted(path.parts[-4] for path in folder.glob("rounds/*/*/policy/content"))
    recent = [f"{number:04}" for number in range(ROUNDS - KEEP + 1, ROUNDS + 1)]
    assert set(bulky) == set(recent)
    assert len(list(folder.glob("rounds/*/01-generate/completions/content"))) == ROUNDS
    assert {path.parent.name for path in folder.glob("rounds/*/set-aside-*")} <= set(recent)
    assert not list(folder.glob("rounds/*/.*"))
    sizes = {
        number: sum(p.stat().st_size for p in (folder / f"rounds/{number:04}").rglob("*.json"))
        for number in (100, 997 - KEEP)
    }
    assert abs(sizes[100] - sizes[997 - KEEP]) < 20

    # Each stage once, and once more for each time its result was set aside.
    lines = list(read_records(folder / "ledger.jsonl"))
    made = [line["key"] for line in lines if line["step"] != "set-aside"]
    aside = [line["key"] for line in lines if line["step"] == "set-aside"]
    assert len(aside) == world.faults["damage"]
    assert Counter(made) - Counter(aside) == Counter(set(made))
    assert len(set(made)) == 2 * ROUNDS

    calm = tmp_path / "calm"
    quiet = World(calm, clock)
    quiet.choose = _never()
    fake.run(calm, rounds=ROUNDS, each_round=[
        Small(stage.name, stage.reads, stage.writes, quiet) for stage in chain
    ], keep=KEEP)  # fmt: skip
    with_faults = {k: v for k, v in fake.files(folder).items() if "set-aside" not in k}
    assert with_faults == fake.files(calm)


class _never(random.Random):
    def random(self) -> float:
        return 1.0
