"""`align data build`, killed at random moments, ends with the bytes of the uninterrupted run.

ALIGN_DATA_KILLS sets the number of kills of each pipeline.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.loops.ledger import read_records
from tests import tiny_loops
from tests.align.commands.test_data import SEARCH
from tests.faults.forked import Forked

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("ALIGN_DATA_KILLS", "4"))
SEED = 3

BUILDS = {"mcts": [SEARCH | {"chunk": 1, "root_simulations": 24}]}


@pytest.fixture(scope="module")
def align(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    tmp_path = tmp_path_factory.mktemp("data")
    tiny_loops.build_rows(tmp_path)
    policy = tiny_loops.build_policy(tmp_path / "start")
    opened: list[Forked] = []

    def of(name: str) -> Forked:
        recipe = tiny_loops.write_data_recipe(tmp_path, policy, BUILDS[name])
        forked = Forked(recipe, root, tmp_path / "cache", "data", "build")
        opened.append(forked)
        # The first one waits for the imports.
        forked.start(tmp_path / "none", "seed=-1")
        assert forked.ended() == 2
        return forked

    yield of
    for forked in opened:
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


@pytest.mark.parametrize("name", BUILDS)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    align: Callable[[str], Forked], name: str, tmp_path: Path
) -> None:
    forked = align(name)
    duration = forked.finish(tmp_path / "straight" / "run")
    expected = files(tmp_path / "straight" / "run")
    choose = random.Random(f"{SEED}/{name}")
    killed = attempt = 0
    partly = 0
    while killed < KILLS:
        run = tmp_path / f"cut-{attempt}" / "run"
        attempt += 1
        code = -9
        while code:
            known = journal(run)
            process = forked.start(run)
            wait(run, choose.randrange(tiny_loops.PROMPTS), until=time.monotonic() + duration)
            time.sleep(choose.uniform(0, 0.02))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            code = forked.ended()
            assert code in (0, -signal.SIGKILL), Path(f"{run}.log").read_text()[-4000:]
            killed += code != 0
            done = journal(run)
            # What is in the journal stays there, and nothing in it is done a second time.
            assert done[: len(known)] == known or not done
            assert len(set(done)) == len(done)
            partly += 0 < len(done) < tiny_loops.PROMPTS
        assert files(run) == expected
    assert partly, "no kill came between two chunks"
