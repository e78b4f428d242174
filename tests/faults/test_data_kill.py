"""`align data build`, killed at random moments, ends with the bytes of the uninterrupted run.

ALIGN_DATA_KILLS sets the number of kills of each pipeline.
"""

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align.data.messages import Message
from align.policies.openai_http import PARSER, TEMPLATE
from align.runs.ledger import read_records
from align.servers.server import Call
from tests import tiny_loops
from tests.align.app.test_data import SEARCH
from tests.align.judges.fault_server import FaultServer
from tests.faults.forked import Forked

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("ALIGN_DATA_KILLS", "4"))
SEED = 3
GENERATE = {"run": "generate", "samples": 4, "max_new_tokens": 16}


def answered(body: dict) -> str:
    """An annotator and an expert for answers of letters."""
    text = body["messages"][-1]["content"]
    asked = re.findall(r"<answer ([AB]) (\w{8})>\n(.*?)\n</answer", text, re.S)
    if asked:
        (_, code, first), (_, _, second) = asked
        return f"VERDICT {code}: {'A' if first < second else 'B'}"
    response = re.search(r"<response (\w{8})>\n(.*?)\n</response", text, re.S)
    if response is None:
        return "abc"
    sentence = {"sentence": response[2], "score": 2, "error_type": "reasoning", "objects": []}
    return json.dumps({"0": sentence | {"rewritten": "abcd", "reason": "by rule"}})


def builds(url: str) -> dict[str, list[dict[str, Any]]]:
    server = {"base_url": url, "model": "m", "revision": "1"}
    return {
        "mcts": [SEARCH | {"chunk": 1, "root_simulations": 24}],
        "self_reference": [
            GENERATE,
            {
                "run": "self_reference",
                "annotator": "server",
                "server": server,
                "strength": "votes",
                "chunk": 1,
            },
        ],
        "uncertainty": [
            GENERATE,
            {
                "run": "uncertainty",
                "rewards": {"by": "answers", "path": "answers.jsonl", "pattern": "^(?=[a-d])()"},
                "labelled": "eval.jsonl",
                "estimator": {"kind": "likelihood"},
                "chunk": 1,
            },
        ],
        "expert_correction": [
            {
                "run": "expert_correction",
                "expert_by": "server",
                "server": server,
                "pairs": ["rev_vs_gen"],
                "responses": {"max_new_tokens": 16, "top_k": 0, "top_p": 1.0},
                "chunk": 1,
            },
        ],
    }


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(answered) as server:
        server.delay = 0.005
        yield server


@pytest.fixture(scope="module")
def align(
    server: FaultServer, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Forked]]:
    tmp_path = tmp_path_factory.mktemp("data")
    tiny_loops.build_rows(tmp_path)
    policy = tiny_loops.build_policy(tmp_path / "start")
    recipe = tiny_loops.write_data_recipe(tmp_path, policy, builds(server.url)["mcts"])
    forked = Forked(recipe, root, tmp_path / "cache", "data", "build")
    # The first one waits for the imports.
    forked.start(tmp_path / "none", "seed=-1")
    assert forked.ended() == 2

    def of(name: str) -> Forked:
        text = json.dumps(builds(server.url)[name])
        for file in ("answers.jsonl", "eval.jsonl"):
            text = text.replace(f'"{file}"', json.dumps(str(tmp_path / file)))
        forked.recipe = tiny_loops.write_data_recipe(tmp_path, policy, json.loads(text))
        return forked

    yield of
    forked.close()


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves, save its journals of when."""
    kept = [*run.glob("dataset/**/*"), *run.glob("rounds/*/[0-9]*/**/*"), run / "metrics.json"]
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in kept if p.is_file()}
    assert any(name.endswith(".parquet") for name in found)
    return found


def journal(run: Path) -> list[int]:
    """Chunks that a run cut off in its pipeline has on disk."""
    found = list(run.glob("rounds/*/.*.scratch/chunks.jsonl"))
    return [line["number"] for line in read_records(found[0])] if found else []


def wait(run: Path, chunks: int, until: float) -> None:
    """Until so many chunks are on disk, or the time is over."""
    while time.monotonic() < until:
        if any(
            path.read_bytes().count(b"\n") >= chunks
            for path in run.glob("rounds/*/.*.scratch/chunks.jsonl")
        ):
            return
        time.sleep(0.002)


def key(body: dict) -> str:
    """Under which the run's call store keeps the answer to a request."""
    call = Call(
        prompt=tuple(Message(**message) for message in body["messages"]),
        parameters={k: v for k, v in body.items() if k not in ("model", "messages")},
        template=TEMPLATE,
        parser=PARSER,
        sample=0,
    )
    return call.key(model="m", revision="1")


def stored(run: Path) -> set[str]:
    if not (run / "calls.sqlite").exists():
        return set()
    with contextlib.closing(sqlite3.connect(run / "calls.sqlite")) as store:
        tables = store.execute("SELECT name FROM sqlite_master").fetchall()
        return {key for (key,) in store.execute("SELECT key FROM calls")} if tables else set()


@pytest.mark.parametrize("name", builds(""))
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    align: Callable[[str], Forked], server: FaultServer, name: str, tmp_path: Path
) -> None:
    forked = align(name)
    begun = len(server.bodies)
    duration = forked.finish(tmp_path / "straight" / "run")
    expected = files(tmp_path / "straight" / "run")
    asked = {key(body) for body in server.bodies[begun:]}
    assert stored(tmp_path / "straight" / "run") == asked
    assert bool(asked) == (name in ("self_reference", "expert_correction"))
    choose = random.Random(f"{SEED}/{name}")
    partly = 0
    for attempt in range(KILLS // 2):
        run = tmp_path / f"cut-{attempt}" / "run"
        for deaths in range(3):  # the second one while it recovers; then it may end
            known, answers = journal(run), stored(run)
            begun = len(server.bodies)
            process = forked.start(run)
            if deaths < 2:
                more = choose.randrange(max(1, tiny_loops.PROMPTS - len(known)))
                wait(run, len(known) + more, until=time.monotonic() + duration)
                time.sleep(choose.uniform(0, 0.02))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            code = forked.ended()
            said = Path(f"{run}.log").read_text()[-4000:]
            assert code == 0 or (deaths < 2 and code == -signal.SIGKILL), said
            # The server may still be reading what the killed process sent.
            time.sleep(0.05)
            new = {key(body) for body in server.bodies[begun:]}
            assert not answers & new, "an acknowledged call was asked again"
            done = journal(run)
            # What is in the journal stays there, and nothing in it is done a second time.
            assert done[: len(known)] == known or not done
            assert len(set(done)) == len(done)
            partly += 0 < len(done) < tiny_loops.PROMPTS
        assert files(run) == expected
    assert partly, "no kill came between two chunks"
