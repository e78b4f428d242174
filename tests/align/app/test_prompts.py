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


def by_kind(place: Path, per_round: int = 4, **settings) -> PromptSource:
    """12 rows: 2 of kind a, 10 of kind b."""
    rows = [{"prompt": f"p{i}", "kind": "a" if i < 2 else "b"} for i in range(12)]
    tiny_loops.write_rows(place / "prompts.jsonl", rows)
    return source(
        place,
        per_round=per_round,
        curriculum={"name": "dump", "column": "kind", **settings},
    )


def test_a_curriculum_asks_equally_much_of_every_source_at_first(place: Path) -> None:
    prompts, state = by_kind(place).by_curriculum({})
    assert state["share"] == {"a": 0.5, "b": 0.5}
    assert state["asked"] == ["a", "a", "b", "b"]
    assert {prompt.row for prompt in prompts[:2]} == {1, 2}
    assert {prompt.row for prompt in prompts[2:]} < {*range(3, 13)}
    # What `align check` looks at.
    assert by_kind(place).of_round(1) == prompts


def test_a_source_goes_through_its_rows_in_turn_and_none_twice_in_a_round(place: Path) -> None:
    """6 of 10 in a round: what an epoch leaves comes first, then others of the next epoch."""
    source_ = by_kind(place, per_round=8)
    state: dict = {}
    asked = []
    for _ in range(5):
        prompts, state = source_.by_curriculum(state)
        rows = [prompt.row for prompt in prompts if prompt.row > 2]
        assert len(rows) == len(set(rows)) == 6
        asked += rows
    assert sorted(asked[:10]) == list(range(3, 13))
    assert set(asked[:6]) != set(asked[6:12])
    # In 30 turns each of 10 stands three times, or once more or less where one was passed over.
    assert set(Counter(asked).values()) <= {2, 3, 4}


def test_what_is_learned_moves_the_round_to_that_source(place: Path) -> None:
    state = {
        "arms": {
            "a": {"seen": 40, "window": [0.0] * 9, "place": 3},
            "b": {"seen": 40, "window": [1.0] * 9, "place": 0},
        }
    }
    _, found = by_kind(place).by_curriculum(state)
    assert found["asked"] == ["b"] * 4
    assert found["share"]["b"] > 0.99
    _, mild = by_kind(place, temperature=100.0).by_curriculum(state)
    assert Counter(mild["asked"]) == {"a": 2, "b": 2}
    assert by_kind(place).by_curriculum(state) == by_kind(place).by_curriculum(state)


def test_sources_may_be_files(place: Path) -> None:
    (place / "rows").mkdir()
    for name in ("easy", "hard"):
        tiny_loops.write_rows(
            place / "rows" / f"{name}.jsonl", [{"prompt": f"{name}{i}"} for i in range(3)]
        )
    section = Prompts(source=str(place / "rows"), per_round=4, curriculum={"name": "dump"})
    _, state = PromptSource(section, RowPolicy()).by_curriculum({})
    assert state["asked"] == ["easy", "easy", "hard", "hard"]


def test_rows_without_a_source_and_a_single_source_are_refused(place: Path) -> None:
    prompts = by_kind(place)
    rows = [{"prompt": "p0", "kind": "a"}, {"prompt": "p1"}]
    tiny_loops.write_rows(place / "prompts.jsonl", rows)
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: the row has no 'kind'"):
        prompts.of_round(1)
    tiny_loops.write_rows(place / "prompts.jsonl", rows[:1])
    alone = source(place, per_round=1, curriculum={"name": "dump", "column": "kind"})
    with pytest.raises(DataError, match=r"all prompts of .* have one \(kind: a\)"):
        alone.of_round(1)


def test_the_identity_is_that_of_the_sources_too(place: Path) -> None:
    plain = source(place, per_round=4).identity
    assert "curriculum" not in plain
    before = by_kind(place).identity
    assert by_kind(place).identity == before
    assert by_kind(place, window=5).identity != before
    path = place / "prompts.jsonl"
    path.write_text(path.read_text().replace('"a"', '"b"', 1))
    changed = source(place, per_round=4, curriculum={"name": "dump", "column": "kind"})
    assert changed.identity != before
