"""A loop over groups survives kills: groups, the likeliest answers, and what they train.

ALIGN_LOOP_KILLS sets the number of kills.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.runs.manifest import damage
from tests import tiny_loops
from tests.faults.forked import Forked

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("ALIGN_LOOP_KILLS", "3"))
SEED = 11


@pytest.fixture(scope="module")
def align(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    place = tmp_path_factory.mktemp("loop")
    tiny_loops.build_rows(place)
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    stages[0] |= {"greedy": True, "keep_unfinished": True}
    # A filter that draws: the draw is part of what must come back.
    rule = {"rule": "groups", "advantage": "greedy", "filter": "best_random"}
    stages[2] = {"run": "select"} | rule
    recipe = tiny_loops.write_recipe(
        place,
        tiny_loops.build_policy(place / "start"),
        objective={"name": "remax", "kl_beta": 0.1},
        roles={"reference": "start", "previous": "round_start"},
        each_round=stages,
    )
    forked = Forked(recipe, root, place / "cache", "loop")
    # The first one waits for the imports.
    forked.start(place / "none", "rounds=0")
    assert forked.ended() == 2
    yield forked
    forked.close()


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves, save its journals of when."""
    kept = [*run.glob("model/*"), *run.glob("rounds/*/[0-9]*/**/*"), *run.glob("*.json")]
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in kept if p.is_file()}
    assert {"model/model.safetensors", "metrics.json", "history.json"} <= found.keys()
    return found


def test_killed_at_random_moments_it_ends_as_the_uninterrupted_one(
    align: Forked, tmp_path: Path
) -> None:
    straight = tmp_path / "straight" / "run"
    straight.parent.mkdir()
    duration = align.finish(straight)
    expected = files(straight)
    history = json.loads((straight / "history.json").read_text())
    trained = [row for row in history if row["stage"] == "train"]
    assert len(trained) == 3
    assert all(row["steps"] > 0 for row in trained)
    assert any(row["grad_norm"] > 0 for row in trained)
    selected = [row["left_out"] for row in history if row["stage"] == "select"]
    assert all(row["greedy"] > 0 for row in selected)
    assert all(row["not_drawn"] > 0 for row in selected)

    choose = random.Random(SEED)
    where: Counter[str] = Counter()
    killed = attempt = 0
    while killed < KILLS:
        run = tmp_path / f"cut-{attempt}" / "run"
        run.parent.mkdir()
        attempt += 1
        code = -9
        while code:
            process = align.start(run)
            time.sleep(choose.uniform(0, duration * 0.6))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            code = align.ended()
            if code == -signal.SIGKILL:
                killed += 1
                made = sorted(p.relative_to(run).as_posix() for p in run.glob("rounds/*/*"))
                where[made[-1] if made else "nothing"] += 1
            else:
                assert code == 0, Path(f"{run}.log").read_text()[-4000:]
            for stage in run.glob("rounds/*/[0-9]*"):
                assert damage(stage) is None, stage
        assert files(run) == expected
    assert len(where) >= 2, f"not spread over the loop: {where}"
