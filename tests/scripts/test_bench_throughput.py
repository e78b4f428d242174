"""The benchmark's rows are what they are said to be, and a short run measures them."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench_lengths import (  # noqa: E402
    COMPLETIONS,
    MAX_LENGTH,
    PAIRS,
    TokensPerPair,
    data_set,
    grouped_steps,
    random_steps,
    synthetic,
)
from bench_turns import Turns  # noqa: E402

from align.errors import DataError  # noqa: E402

# Medians of performance figures quoted for these distributions: prompt, completion, in tokens.
MEDIANS = {
    "uf": (150, 250),
    "hh": (200, 60),
    "step": (300, 30),
    "k4": (150, 250),
    "tree": (120, 40),
}


def first_pairs(rows: list[dict]) -> list[dict]:
    """One pair of each group."""
    return list({row["group"]: row for row in reversed(rows)}.values())


@pytest.mark.parametrize("name", MEDIANS)
def test_medians_of_the_distributions(name: str) -> None:
    rows = synthetic(name, 1000, seed=3, vocabulary=64)
    prompt, completion = MEDIANS[name]
    # Standard error of a median of n lognormal draws: 1.25 s / sqrt(n) of it, 4 % for s = 1.
    assert median(len(row["prompt_ids"]) for row in first_pairs(rows)) == pytest.approx(
        prompt, rel=0.1
    )
    for side in ("chosen_ids", "rejected_ids"):
        assert median(len(row[side]) for row in rows) == pytest.approx(completion, rel=0.1)
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    )
    assert longest <= MAX_LENGTH


def test_k4_compares_the_best_completion_with_each_other_one() -> None:
    rows = synthetic("k4", 2, seed=0, vocabulary=64)
    first, second = rows[: COMPLETIONS["k4"] - 1], rows[COMPLETIONS["k4"] - 1 :]
    for group in (first, second):
        assert len({tuple(row["prompt_ids"]) for row in group}) == 1
        assert len({tuple(row["chosen_ids"]) for row in group}) == 1
        assert len({tuple(row["rejected_ids"]) for row in group}) == 3


def test_a_tree_goes_on_from_the_better_step() -> None:
    rows = synthetic("tree", 1, seed=0, vocabulary=64)
    assert len(rows) == 6
    for above, below in itertools.pairwise(rows):
        assert below["prompt_ids"] == above["prompt_ids"] + above["chosen_ids"]


def test_counted_tokens() -> None:
    # 16 pairs in two groups of 8; prompts of 10 tokens, chosen of 2, rejected of 4 and, in the
    # second group, of 20. Random batches mix the groups, so both are 30 wide: 2 * 30.
    rows = [
        {
            "group": group,
            "prompt_ids": [group] * 10,
            "chosen_ids": [20, 10 * group + i],
            "rejected_ids": [40 + 10 * group + i] * (20 if group else 4),
        }
        for i in range(8)
        for group in (0, 1)
    ]
    counted = TokensPerPair.of(rows, seed=0)
    assert counted.padded == 60
    # Sorted: one batch of 14 and one of 30 wide: (28 + 60) / 2.
    assert counted.grouped == 44
    # (12 + 14) and (12 + 30) per pair.
    assert counted.free == (26 + 42) / 2
    # A group: the prompt, the chosen completions' common first token, their 8 others, and the
    # rejected ones: 10 + 1 + 8 + 8 * 4 = 51, and 10 + 1 + 8 + 8 * 20 = 179.
    assert counted.shared == (51 + 179) / 16


def spread(rows: list[dict]) -> float:
    """Mean difference, in tokens, between the longest and the shortest prompt of a step."""
    steps = [rows[i : i + PAIRS] for i in range(0, len(rows), PAIRS)]
    lengths = [[len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in step] for step in steps]
    return sum(max(step) - min(step) for step in lengths) / len(steps)


def test_grouped_steps_are_of_similar_lengths_and_cover_all_lengths() -> None:
    rows = data_set("step", large=True, seed=0, vocabulary=64)
    at_random, grouped = (draw(rows, 5, PAIRS, 0) for draw in (random_steps, grouped_steps))
    assert len(at_random) == len(grouped) == 5 * PAIRS
    assert spread(grouped) < spread(at_random) / 4
    everywhere = [len(row["prompt_ids"]) for row in rows]
    assert median(len(row["prompt_ids"]) for row in grouped) == pytest.approx(
        median(everywhere), rel=0.25
    )


def test_random_steps_see_every_row_once_an_epoch() -> None:
    rows = data_set("tree", large=False, seed=0, vocabulary=64)
    assert len(rows) == 24
    drawn = random_steps(rows, 6, PAIRS, 0)
    for epoch in (drawn[:24], drawn[24:]):
        assert sorted(id(row) for row in epoch) == sorted(id(row) for row in rows)
    assert drawn[:24] != drawn[24:]


def test_real_rows_say_where_they_are_looked_for(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_TEST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        data_set("demo_real", large=True, seed=0, vocabulary=512)


def test_real_rows(shared_data: Path) -> None:
    rows = data_set("demo_real", large=True, seed=0, vocabulary=2048)
    assert len(rows) > 100
    assert all(row["chosen_ids"][-1] == row["rejected_ids"][-1] == 2 for row in rows)


def play(turns: Turns, side: int, steps: int, played: list[int]) -> None:
    for _ in range(steps):
        turns.wait_for(side)
        played.append(side)
        turns.hand_over()
    turns.wait_for_the_end()


def test_turns_alternate_and_so_does_who_begins() -> None:
    turns, played = Turns(3), []
    sides = [threading.Thread(target=play, args=(turns, side, 3, played)) for side in (1, 0)]
    for side in sides:
        side.start()
    for side in sides:
        side.join(timeout=10)
    assert played == [0, 1, 1, 0, 0, 1]


def test_a_loop_that_fails_releases_the_other() -> None:
    turns = Turns(3)
    turns.fail()
    with pytest.raises(RuntimeError, match="other training loop"):
        turns.wait_for(1)


@pytest.mark.e2e
def test_a_short_run(tmp_path: Path) -> None:
    found = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPTS / "bench_throughput.py"), "--quick", "--json", found]
    run = subprocess.run(
        [*command, "--data", "step", "--baseline", "trl"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (row,) = json.loads(found.read_text())
    assert (row["data"], row["baseline"], row["device"]) == ("step", "trl", "cpu")
    for name in ("speed_ratio", "memory_ratio", "token_ratio", "token_limit", "wall_ratio"):
        assert isinstance(row[name], float), name
    assert row["speed_ratio_min"] <= row["speed_ratio"] <= row["speed_ratio_max"]
    assert row["n"] == 2
    assert row["commit"]
    assert row["same_losses"]
    assert row["backend"] == "tree"
    # The token counts of step pairs bound the ratio of this draw; times are far above 1.
    assert 2 < row["token_ratio"] < 4
    assert row["speed_ratio"] > 1.5
    assert row["memory_ratio"] > 2
    assert "step" in run.stdout


def test_packed_rows_are_a_forest_without_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_loops

    from align.forest import PADDED, TREE, Choice, TokenRow

    trainer = object.__new__(bench_loops.WithoutSharing)
    chosen = Choice(TREE, "it fits", 0.0)
    monkeypatch.setattr(bench_loops.PreferenceTrainer, "_choose_backend", lambda self: chosen)
    packed = trainer._choose_backend().backend
    rows = [TokenRow(list(range(1, 21)), [30 + i, 2]) for i in range(3)]
    # 3 rows of 22 tokens; a forest has their 20 common ones once.
    assert packed.lay_out(rows).computed_tokens == 66
    assert TREE.lay_out(rows).computed_tokens == 26
    chosen = Choice(PADDED, "padded rows, because of a window", None)
    with pytest.raises(RuntimeError, match="padded rows, because of a window"):
        trainer._choose_backend()
