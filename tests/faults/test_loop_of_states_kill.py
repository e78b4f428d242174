"""What rounds remember survives kills: shares of the prompts' sources, and weights of rewards.

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
SEED = 5
JUDGE = {
    "run": "judge",
    "by": "rewards",
    "adapt": {"name": "spread", "decay": 0.5},
    "rewards": [tiny_loops.STAGES[1] | {"weight": 2.0}, {"by": "length", "weight": 0.5}],
}


@pytest.fixture(scope="module")
def align(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    place = tmp_path_factory.mktemp("loop")
    tiny_loops.build_rows(place)
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    kinds = [row | {"kind": "ab"[number % 3 == 0]} for number, row in enumerate(rows)]
    tiny_loops.write_rows(place / "prompts.jsonl", kinds)
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    of_answers = {k: v for k, v in JUDGE["rewards"][0].items() if k != "run"}
    of_answers["path"] = str(place / "answers.jsonl")
    stages[1] = JUDGE | {"rewards": [of_answers, JUDGE["rewards"][1]]}
    recipe = tiny_loops.write_recipe(
        place,
        tiny_loops.build_policy(place / "start"),
        prompts={"per_round": 6, "curriculum": {"name": "dump", "column": "kind", "window": 8}},
        objective={"name": "dpo"},
        roles={"reference": "round_start"},
        each_round=stages,
        rounds=3,
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


def remembered(run: Path, stage: str, kind: str) -> list[dict]:
    """Of every round."""
    found = sorted(run.glob(f"rounds/*/??-{stage}/{kind}/state.json"))
    return [json.loads(path.read_text()) for path in found]


@pytest.fixture(scope="module")
def straight(align: Forked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; `seconds` beside it says how long it took."""
    run = tmp_path_factory.mktemp("straight") / "run"
    (run.parent / "seconds").write_text(str(align.finish(run)))
    return run


def test_killed_at_random_moments_it_remembers_the_same(
    align: Forked, straight: Path, tmp_path: Path
) -> None:
    duration = float((straight.parent / "seconds").read_text())
    expected = files(straight)

    # There is something to remember, and it moves.
    weights = remembered(straight, "judge", "reward_weights")
    assert len({json.dumps(state) for state in weights}) == 3
    given = remembered(straight, "generate", "curriculum")
    assert given[0]["share"] == {"a": 0.5, "b": 0.5}
    assert given[1]["share"] != given[0]["share"]
    learned = remembered(straight, "judge", "curriculum")
    for before, now in zip(learned, given[1:], strict=False):
        assert {n: a["window"] for n, a in before["arms"].items()} == {
            n: a["window"] for n, a in now["arms"].items()
        }
    history = json.loads((straight / "history.json").read_text())
    said = [row for row in history if row["stage"] == "judge"]
    assert all(
        {"weight_1_answers", "weight_2_length", "learnability_a"} <= row.keys() for row in said
    )
    asked = [row["asked"] for row in history if row["stage"] == "generate"]
    assert [sum(of.values()) for of in asked] == [6, 6, 6]

    choose = random.Random(SEED)
    where: Counter[str] = Counter()
    killed = attempt = 0
    while killed < KILLS:
        run = tmp_path / f"cut-{attempt}" / "run"
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


def test_a_round_goes_on_from_what_the_one_before_remembers(
    align: Forked, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    align.finish(run, "rounds=2")
    align.finish(run, "rounds=3")
    assert files(run) == files(straight)
