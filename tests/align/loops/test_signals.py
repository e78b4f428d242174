"""A signal ends a loop in good order, in time whatever it is doing, and loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align.errors import Interrupted
from align.loops import signals

BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "loop"


@pytest.fixture(autouse=True)
def somebody_elses_handlers():
    """Who had the signals before must find them again, and must not get ours."""

    def handler(number: int, frame: Any) -> None:
        raise AssertionError("the signal reached the former handler")

    former = {number: signal.signal(number, handler) for number in BOTH}
    yield
    assert [signal.getsignal(number) for number in BOTH] == [handler, handler]
    for number, before in former.items():
        signal.signal(number, before)


@pytest.fixture
def straight(fake_loop: ModuleType, tmp_path: Path) -> dict[str, bytes]:
    fake_loop.run(tmp_path / "straight")
    return fake_loop.files(tmp_path / "straight")


def interrupted_in(fake: ModuleType, monkeypatch: pytest.MonkeyPatch, what, round_number=2) -> None:
    """Calls `what` in the middle of the judge stage, once."""
    real, done = fake.Judge.run, []

    def run(self: Any, context: Any) -> Any:
        said = real(self, context)
        if context.round == round_number and not done:
            done.append(True)
            what(context)
        return said

    monkeypatch.setattr(fake.Judge, "run", run)


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
def test_the_stage_at_hand_is_finished_and_none_begun(
    fake_loop, folder, straight, monkeypatch, number
) -> None:
    asked = []

    def ask(context: Any) -> None:
        assert context.stop.requested is None
        kill(number)
        asked.append(context.stop.requested)

    interrupted_in(fake_loop, monkeypatch, ask)
    with pytest.raises(Interrupted, match=f"{number.name} before stage select of round 2") as stop:
        fake_loop.run(folder)
    assert stop.value.exit_code == 75
    assert "Run the same command again to go on" in str(stop.value)
    assert asked == [number.name]
    made = [path.name for path in sorted((folder / "rounds/0002").iterdir())]
    assert made == ["01-generate", "02-judge"]
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_a_second_signal_abandons_the_stage_at_once(
    fake_loop, folder, straight, monkeypatch
) -> None:
    def ask_twice(context: Any) -> None:
        kill(signal.SIGINT)
        kill(signal.SIGINT)
        raise AssertionError("the stage went on")

    interrupted_in(fake_loop, monkeypatch, ask_twice)
    with pytest.raises(
        Interrupted,
        match=r"SIGINT in the middle of a stage\..*of the one at hand what it had stored",
    ):
        fake_loop.run(folder)
    assert not (folder / "rounds/0002/02-judge").exists()
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_a_stage_that_takes_too_long_is_abandoned(fake_loop, folder, straight, monkeypatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.2)

    def work_long(context: Any) -> None:
        kill(signal.SIGTERM)
        time.sleep(30)

    interrupted_in(fake_loop, monkeypatch, work_long)
    started = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM in the middle of a stage"):
        fake_loop.run(folder)
    assert 0.2 <= time.monotonic() - started < 5
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_what_is_being_published_is_not_abandoned(fake_loop, folder, straight, monkeypatch) -> None:
    from align.loops import engine

    real, done = engine.publish, []

    def publish(partial: Path, final: Path, about: Any) -> None:
        if final.name == "02-judge" and not done:
            done.append(True)
            kill(signal.SIGTERM)
            kill(signal.SIGTERM)
        real(partial, final, about)

    monkeypatch.setattr(engine, "publish", publish)
    with pytest.raises(Interrupted, match="before stage select of round 1"):
        fake_loop.run(folder)
    assert (folder / "rounds/0001/02-judge/manifest.json").is_file()
    assert [line["step"] for line in fake_loop.history(folder)] == ["generate", "judge"]
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_a_signal_that_came_before_the_loop_was_entered_is_not_lost(
    fake_loop, folder, straight
) -> None:
    with signals.StopSignal() as stop:
        kill(signal.SIGTERM)
        with pytest.raises(Interrupted, match="before stage generate of round 1"):
            fake_loop.run(folder, stop=stop)
    assert fake_loop.history(folder) == []
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_a_loop_that_was_just_finished_is_finished(fake_loop, folder, monkeypatch) -> None:
    real = fake_loop.Train.run

    def run(self: Any, context: Any) -> Any:
        if context.round == 3:
            kill(signal.SIGTERM)
        return real(self, context)

    monkeypatch.setattr(fake_loop.Train, "run", run)
    assert fake_loop.run(folder)["policy"].round == 3


def test_an_error_puts_the_handlers_back_and_ends_the_watch(fake_loop, folder, monkeypatch) -> None:
    def fail(context: Any) -> None:
        raise RuntimeError("broken")

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    interrupted_in(fake_loop, monkeypatch, fail)
    with pytest.raises(RuntimeError, match="broken"):
        fake_loop.run(folder)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_outside_the_main_thread_a_loop_works_without_handlers(fake_loop, folder, straight) -> None:
    thread = threading.Thread(target=fake_loop.run, args=[folder])
    thread.start()
    thread.join()
    assert fake_loop.files(folder) == straight


def test_what_does_not_even_end_then_is_cut_off_with_the_same_exit_code(
    fake_loop, folder, straight, root: Path
) -> None:
    """A stage that swallows every exception, as native code that does not return would."""
    code = """
import os, signal, sys, time
from pathlib import Path
import fake_loop
from align.loops import signals
signals.GRACE, signals.LIMIT, signals.AGAIN = 0.2, 0.8, 0.2

def run(self, context):
    os.write(1, b"ready")
    while True:
        try:
            time.sleep(60)
        except Exception:
            os.write(1, b"!")

fake_loop.Judge.run = run
fake_loop.run(Path(sys.argv[1]))
"""
    lies = [str(root), str(root / "tests/align/loops")]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(lies)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, error = process.communicate(timeout=20)
    assert process.returncode == 75
    assert 0.8 <= time.monotonic() - started < 5
    assert len(said) >= 2  # It was asked again.
    assert b"Stopped by SIGTERM" in error
    fake_loop.run(folder)
    assert fake_loop.files(folder) == straight


def test_the_limits_keep_the_promise_of_30_seconds() -> None:
    assert 0 < signals.GRACE < signals.LIMIT < 30
    assert signals.AGAIN < signals.LIMIT - signals.GRACE
