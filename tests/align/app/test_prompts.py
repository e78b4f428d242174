"""Which prompts a round asks."""

from collections import Counter
from pathlib import Path

import pytest

from align.data.row_policy import RowPolicy
from align.errors import DataError, RecipeError
from align.recipe import Prompts
from align.stages.prompts import PromptSource
from tests import tiny_loops


def source(place: Path, **settings) -> PromptSource:
    return PromptSource(Prompts(source=str(place / "prompts.jsonl"), **settings), RowPolicy())


def test_an_epoch_asks_every_prompt_once_and_the_next_in_another_order(place: Path) -> None:
    """12 rows, 4 per round: rounds 1 to 3 are one epoch."""
    prompts = source(place, per_round=4)
    rounds = [[prompt.row for prompt in prompts.of_round(n)] for n in range(1, 7)]
    assert all(len(asked) == 4 for asked in rounds)
    first, second = ([row for asked in of for row in asked] for of in (rounds[:3], rounds[3:]))
    assert sorted(first) == sorted(second) == list(range(1, 13))
    assert first != second
    assert first != list(range(1, 13))


def test_no_round_asks_a_prompt_twice(place: Path) -> None:
    """5 of 12 per round: an epoch has two rounds, and which 2 rows it leaves out changes."""
    prompts = source(place, per_round=5)
    asked: Counter[int] = Counter()
    for number in range(1, 61):
        rows = [prompt.row for prompt in prompts.of_round(number)]
        assert len(rows) == len(set(rows)) == 5
        asked.update(rows)
    # 60 rounds of 5: 25 times each in the mean, at most 30.
    assert asked.total() == 300
    assert min(asked.values()) >= 18


def test_a_round_is_the_same_whoever_asks_and_the_seed_changes_it(place: Path) -> None:
    again = source(place, per_round=4).of_round(2)
    assert source(place, per_round=4).of_round(2) == again
    assert source(place, per_round=4, seed=1).of_round(2) != again


@pytest.mark.parametrize("per_round", [None, 12, 50])
def test_few_rows_are_all_asked_every_round(place: Path, per_round: int | None) -> None:
    prompts = source(place, per_round=per_round)
    for number in (1, 2):
        assert [prompt.row for prompt in prompts.of_round(number)] == list(range(1, 13))


def test_the_identity_is_that_of_the_content(place: Path) -> None:
    before = source(place).identity
    path = place / "prompts.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"prompt": ', '"prompt":   '))
    assert source(place).identity == before
    path.write_text(text[: text.index("\n", 1) + 1])
    assert source(place).identity != before


def test_rows_that_were_dropped_are_counted(place: Path) -> None:
    rows = [{"prompt": f"p{i}"} for i in range(40)] + [{"prompt": " "}, {"prompt": "p0"}]
    tiny_loops.write_rows(place / "prompts.jsonl", rows)
    prompts = source(place, per_round=4)
    prompts.of_round(1)
    assert prompts.counts() == {"rows": {"read": 41, "kept": 40, "dropped": {"empty_prompt": 1}}}
    tiny_loops.write_rows(place / "prompts.jsonl", rows[:3] + rows[40:41])
    with pytest.raises(DataError, match="empty_prompt"):
        source(place).of_round(1)


@pytest.mark.parametrize("world", ["sums", "styles"])
def test_a_world_gives_other_problems_each_round(world: str) -> None:
    prompts = PromptSource(Prompts(source=f"world:{world}", per_round=16), RowPolicy())
    first, second = prompts.of_round(1), prompts.of_round(2)
    assert len({prompt.id for prompt in first}) == 16
    assert {prompt.id for prompt in first} != {prompt.id for prompt in second}
    assert prompts.of_round(1) == first
    assert prompts.counts() == {}
    assert prompts.identity["per_round"] == 16


def test_more_problems_than_a_world_has_are_refused() -> None:
    prompts = PromptSource(Prompts(source="world:sums", per_round=10**6), RowPolicy())
    with pytest.raises(RecipeError, match=r"prompts\.per_round is 1000000: .*Write a smaller one"):
        prompts.of_round(1)
