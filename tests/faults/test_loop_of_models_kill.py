"""`align loop` with real models, killed at random moments, ends as the uninterrupted run.

ALIGN_LOOP_KILLS sets the number of kills.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.data.messages import Message
from align.judges.pairwise_llm import PARSER, TEMPLATE
from align.runs.manifest import damage
from align.servers.server import Call
from tests import tiny_loops
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.scripted import read
from tests.faults.forked import Forked

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("ALIGN_LOOP_KILLS", "6"))
SEED = 11


def alphabetical(body: dict) -> str:
    code, _, first, second = read(body)
    return f"VERDICT {code}: {'A' if first < second else 'B' if second < first else 'TIE'}"


def key(body: dict) -> str:
    """Under which the loop's call store keeps the answer to a request."""
    call = Call(
        prompt=tuple(Message(**message) for message in body["messages"]),
        parameters={k: v for k, v in body.items() if k not in ("model", "messages")},
        template=TEMPLATE,
        parser=PARSER,
        sample=0,
    )
    return call.key(model="judge", revision="1")


def stored(run: Path) -> set[str]:
    if not (run / "calls.sqlite").exists():
        return set()
    with sqlite3.connect(run / "calls.sqlite") as store:
        tables = store.execute("SELECT name FROM sqlite_master").fetchall()
        keys = store.execute("SELECT key FROM calls").fetchall() if tables else []
    store.close()
    return {found for (found,) in keys}


@pytest.fixture(scope="module")
def judge() -> Iterator[FaultServer]:
    with FaultServer(alphabetical) as server:
        server.delay = 0.01
        yield server


@pytest.fixture(scope="module")
def align(
    judge: FaultServer, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Forked]:
    tmp_path = tmp_path_factory.mktemp("loop")
    tiny_loops.build_rows(tmp_path)
    policy = tiny_loops.build_policy(tmp_path / "start")
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    server = {"base_url": judge.url, "model": "judge", "revision": "1"}
    stages[1] = {"run": "judge", "by": "llm", "server": server}
    recipe = tiny_loops.write_recipe(
        tmp_path,
        policy,
        each_round=[*stages, {"run": "evaluate"}],
        objective={"name": "nash_mp"},
        roles={"reference": "start", "anchor": "ema:0.9"},
    )
    forked = Forked(recipe, root, tmp_path / "cache", "loop")
    # The first one waits for the imports.
    forked.start(tmp_path / "none", "rounds=0")
    assert forked.ended() == 2
    yield forked
    forked.close()


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves, save its journals of when, and the store of calls."""
    kept = [*run.glob("model/*"), *run.glob("rounds/*/[0-9]*/**/*"), *run.glob("*.json")]
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in kept if p.is_file()}
    assert {"model/model.safetensors", "metrics.json", "history.json"} <= found.keys()
    assert any(name.endswith("pairs/rows.jsonl") for name in found)
    return found


def place(run: Path) -> str:
    """The newest thing that a killed run left."""
    made = sorted(p.relative_to(run).as_posix() for p in run.glob("rounds/*/*"))
    return made[-1].partition(".scratch")[0] if made else "nothing"


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    align: Forked, judge: FaultServer, tmp_path: Path
) -> None:
    straight = tmp_path / "straight" / "run"
    before = len(judge.bodies)
    duration = align.finish(straight)
    requests = [key(body) for body in judge.bodies[before:]]
    expected, asked = files(straight), set(requests)
    assert len(asked) == len(requests), "the uninterrupted run asked twice"
    assert stored(straight) == asked
    choose = random.Random(SEED)
    where: Counter[str] = Counter()
    killed = attempt = 0
    while killed < KILLS:
        # Killed again and again, also while it recovers, until it outruns the kill.
        run = tmp_path / f"cut-{attempt}" / "run"
        attempt += 1
        known: set[str] = set()
        begun = len(judge.bodies)
        code, deaths = -9, 0
        while code:
            process = align.start(run)
            time.sleep(choose.uniform(0, duration * 0.6))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            code = align.ended()
            if code == -signal.SIGKILL:
                deaths += 1
                where[place(run)] += 1
            else:
                assert code == 0, Path(f"{run}.log").read_text()[-4000:]
            for stage in run.glob("rounds/*/[0-9]*"):
                assert damage(stage) is None, stage
            # The server may still be reading what the killed process sent.
            time.sleep(0.05)
            new = [key(body) for body in judge.bodies[begun:]]
            assert not known & set(new), "an acknowledged call was asked again"
            known, begun = stored(run), len(judge.bodies)
        killed += deaths
        assert files(run) == expected
        assert stored(run) == asked
    assert len(where) >= 3, f"not spread over the loop: {where}"


def test_terminated_it_says_resumable_and_the_same_command_goes_on(
    align: Forked, judge: FaultServer, tmp_path: Path
) -> None:
    straight, cut = tmp_path / "straight" / "run", tmp_path / "cut" / "run"
    align.finish(straight)
    for made in ("before.json", "rounds/0001/02-judge", "rounds/0002/.04-train*scratch"):
        process = align.start(cut)
        while not list(cut.glob(made)):
            time.sleep(0.005)
        began = time.monotonic()
        os.kill(process, signal.SIGTERM)
        assert align.ended() == 75, Path(f"{cut}.log").read_text()[-4000:]
        assert time.monotonic() - began < 30
        said = Path(f"{cut}.log").read_text()
        assert "Stopped by SIGTERM" in said
        assert "Traceback" not in said
    align.finish(cut)
    assert files(cut) == files(straight)


def test_more_rounds_go_on_and_a_finished_loop_does_nothing(
    align: Forked, judge: FaultServer, tmp_path: Path
) -> None:
    run, straight = tmp_path / "run" / "run", tmp_path / "straight" / "run"
    align.finish(run, "rounds=2")
    made = {p: p.stat().st_mtime_ns for p in run.rglob("*") if "lock" not in p.name}
    made = {p: when for p, when in made.items() if p.is_file()}
    lines = (run / "ledger.jsonl").read_text().count("\n")
    align.finish(run, "rounds=2")
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert "nothing to do" in Path(f"{run}.log").read_text()

    align.finish(run, "rounds=3")
    records = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert {record["round"] for record in records[lines:]} == {3}
    align.finish(straight, "rounds=3")
    assert files(run) == files(straight)

    # Back to what is there, and to what retention took.
    align.finish(run, "rounds=2")
    assert json.loads((run / "metrics.json").read_text())["loop"]["rounds"] == 2
    align.start(run, "rounds=1")
    assert align.ended() == 2
    said = Path(f"{run}.log").read_text()
    assert "rounds is 1, and the policy of that round is no longer there" in said
