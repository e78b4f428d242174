from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from align.diffusion.replay import Replay, select, state_digest


def test_latest_and_initial() -> None:
    for count in range(1, 9):
        assert select("latest", count, seed=3) == count - 1
        assert select("initial", count, seed=3) == 0


def test_random_is_uniform_over_the_earlier_ones() -> None:
    count = 5
    drawn = Counter(select("random", count, seed) for seed in range(10_000))
    # Never the one that this round will make, and none more often than the others.
    assert set(drawn) == set(range(count))
    assert chisquare([drawn[number] for number in range(count)]).pvalue > 1e-3


def test_random_is_the_same_whoever_asks_and_moves_with_the_round() -> None:
    torch.manual_seed(1)
    first = [select("random", count, seed=0) for count in range(1, 40)]
    torch.manual_seed(2)
    assert first == [select("random", count, seed=0) for count in range(1, 40)]
    assert first != [select("random", count, seed=1) for count in range(1, 40)]
    assert len(set(first)) > 5


@pytest.mark.parametrize("on_disk", [True, False])
def test_checkpoints_are_copies(tmp_path: Path, on_disk: bool) -> None:
    replay = Replay("random", tmp_path if on_disk else None)
    weights = {"w": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    replay.keep(0, weights)
    weights["w"] += 1
    replay.keep(1, weights)
    assert replay.load(0)["w"].tolist() == [1, 1, 1]
    replay.load(0)["w"].zero_()
    assert replay.load(0)["w"].tolist() == [1, 1, 1]
    assert replay.load(1)["w"].tolist() == [2, 2, 2]
    assert state_digest(replay.load(0)) != state_digest(replay.load(1))
    assert state_digest(replay.load(1)) == state_digest(weights)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize(
    ("strategy", "kept"), [("random", [0, 1, 2, 3]), ("latest", [2, 3]), ("initial", [0])]
)
def test_what_cannot_be_chosen_is_not_kept(tmp_path: Path, strategy, kept, on_disk: bool) -> None:
    replay = Replay(strategy, tmp_path if on_disk else None)
    for number in range(4):
        replay.keep(number, {"w": torch.full((1,), float(number))})
    assert replay.numbers() == kept


def test_only_one_process_writes(tmp_path: Path) -> None:
    Replay("random", tmp_path, writes=False).keep(0, {"w": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []
