"""A function in place of a format's name: what it gives is read as TRL's columns, row by row."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from align.data.formats.own_reader import name_of
from align.data.formats.pairs import pairs_from_rows
from align.data.formats.readers import READERS, reader_of
from align.data.pair_files import read_pairs
from align.data.problems import REASONS
from align.data.row_policy import RowPolicy
from align.errors import DataError

LENIENT = RowPolicy(max_dropped=1.0)
SECRET = "a text that no message may repeat"


def from_votes(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The two answers by their votes; a row with equal votes is left out."""
    first, second = row["votes"]
    if first == second:
        return None
    better, worse = ("a", "b") if first > second else ("b", "a")
    return {
        "prompt": row["q"],
        "chosen": row[better],
        "rejected": row[worse],
        "margin": abs(first - second),
    }


def asked(number: int, *votes: int, **more: Any) -> dict[str, Any]:
    return {"q": f"Question {number}?\n", "a": "yes", "b": "no", "votes": list(votes)} | more


def written(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def dropped(rows: list[Any], reader: Callable[[Any], Any]) -> list[tuple[int, str, str]]:
    """Row, reason and detail of every row that is lost beside one good one."""
    good = {"prompt": "q", "chosen": "c", "rejected": "r", "good": True}

    def read(row: Mapping[str, Any]) -> Any:
        return row if row.get("good") else reader(row)

    read.__qualname__ = "reader"
    places = [("f", number, row) for number, row in enumerate([*rows, good], start=1)]
    pairs, report = pairs_from_rows(places, source="f", format=read, policy=LENIENT)
    assert (len(pairs), report.read) == (1, len(places))
    assert SECRET not in json.dumps(report.to_json())
    return [(row.row, row.reason, row.detail) for row in report.rows]


def test_what_it_gives_is_read_as_trls_columns(tmp_path: Path):
    path = written(tmp_path, asked(1, 3, 1), asked(2, 0, 5, other="thing"))
    pairs, report = read_pairs(path, format=from_votes, policy=LENIENT)
    assert [(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs] == [
        ("Question 1?\n", "yes", "no", 2.0),
        ("Question 2?\n", "no", "yes", 5.0),
    ]
    assert [(p.source, p.row) for p in pairs] == [(path, 1), (path, 2)]
    assert (report.read, report.kept, report.ignored_columns) == (2, 2, [])


def test_messages_and_an_implicit_prompt_are_read_like_those_of_a_file():
    def messages(row: Mapping[str, Any]) -> Mapping[str, Any]:
        turns = [{"role": "user", "content": row["q"]}]
        return {
            side: [*turns, {"role": "assistant", "content": row[side]}]
            for side in ("chosen", "rejected")
        }

    rows = [("f", 1, {"q": "2 + 2?", "chosen": "4", "rejected": "5"})]
    (pair,), _ = pairs_from_rows(rows, source="f", format=messages, policy=LENIENT)
    assert [turn.content for turn in pair.prompt if not isinstance(turn, str)] == ["2 + 2?"]


def test_a_row_that_it_gives_none_for_is_left_out(tmp_path: Path):
    path = written(tmp_path, asked(1, 3, 1), asked(2, 2, 2))
    pairs, report = read_pairs(path, format=from_votes, policy=LENIENT)
    (lost,) = report.rows
    assert (len(pairs), lost.row, lost.reason) == (1, 2, "left_out")
    assert lost.detail.endswith(".from_votes gave None")


def test_a_row_that_it_fails_on_is_dropped_with_the_errors_type_and_its_name():
    def fails(row: Mapping[str, Any]) -> Mapping[str, Any]:
        raise ValueError(f"cannot read {row['text']}")

    def lacks(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return row["nothing"]

    name = f"{__name__}.reader"
    assert dropped([{"text": SECRET}], fails) == [(1, "reader_failed", f"ValueError in {name}")]
    assert dropped([{"text": SECRET}], lacks) == [(1, "reader_failed", f"KeyError in {name}")]
    assert {"reader_failed", "left_out"} <= set(REASONS)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([SECRET], "wrong_type"),
        (SECRET, "wrong_type"),
        ({"chosen": SECRET}, "missing_field"),
        ({"prompt": "q", "chosen": SECRET, "rejected": SECRET}, "equal"),
        ({"prompt": "q", "chosen": SECRET, "rejected": 3}, "wrong_type"),
        ({"prompt": "q", "chosen": SECRET, "rejected": "r", "margin": "much"}, "bad_score"),
    ],
)
def test_what_is_no_pair_costs_only_its_row(given: Any, reason: str):
    assert [lost[:2] for lost in dropped([{"text": SECRET}], lambda _: given)] == [(1, reason)]


def test_a_line_that_cannot_be_parsed_never_reaches_it(tmp_path: Path):
    path = Path(written(tmp_path, asked(1, 3, 1)))
    path.write_text(path.read_text() + "{broken\n")
    _, report = read_pairs(str(path), format=from_votes, policy=LENIENT)
    assert report.dropped == {"unreadable": 1}


def test_columns_that_it_never_gives_are_told_with_its_name(tmp_path: Path):
    path = written(tmp_path, asked(1, 3, 1))
    with pytest.raises(DataError, match="no column rejected") as told:
        read_pairs(path, format=lambda row: {"chosen": row["a"]}, policy=LENIENT)
    assert "<lambda> reads it" in str(told.value)
    with pytest.raises(DataError, match="1 left_out"):
        read_pairs(path, format=lambda _: None, policy=LENIENT)


def test_an_object_that_is_called_has_the_name_of_its_class():
    class Votes:
        def __call__(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
            return from_votes(row)

    assert name_of(from_votes) == f"{__name__}.from_votes"
    assert name_of(Votes()).endswith(".Votes")


def test_a_name_stands_for_its_reader():
    rows = [{"chosen": "c", "rejected": "r"}]
    assert {name: reader_of(name, rows, "f") for name in READERS} == dict(READERS)
    with pytest.raises(DataError, match="known are auto, trl, hh, sharegpt"):
        reader_of("thl", rows, "f")
