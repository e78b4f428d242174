"""Foreign columns under our names."""

import json

import pytest

from align.data.column_map import with_columns
from align.data.pair_files import read_pairs
from align.data.problems import RowProblem
from align.data.prompt_files import read_prompts
from align.data.question_files import read_questions
from align.data.row_policy import RowPolicy
from align.errors import DataError

ROW = {"turns": ["first", "second"], "meta": {"score": 3}, "a.b": "dotted", "none": None}


def mapped(columns, row=ROW):
    return next(with_columns([("file", 7, row)], columns))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("turns", ["first", "second"]),
        ("turns.1", "second"),
        ("meta.score", 3),
        ("a.b", "dotted"),  # a column whose own name has a dot
        ("none", None),
    ],
)
def test_a_place_in_a_row(where, value):
    source, number, row = mapped({"prompt": where})
    assert (source, number) == ("file", 7)
    assert row == {**ROW, "prompt": value}


@pytest.mark.parametrize("where", ["turns.2", "turns.-1", "turns.x", "meta.none", "gone", "a.c"])
def test_a_place_that_is_not_there_is_a_problem_of_the_row(where):
    _, _, row = mapped({"prompt": where})
    assert isinstance(row, RowProblem)
    assert row.reason == "missing_field"
    assert "turns, meta, a.b, none" in row.detail


def test_without_columns_rows_are_the_same_and_problems_pass():
    problem = RowProblem("unreadable", "row", "broken")
    assert mapped({})[2] is ROW
    assert mapped({"prompt": "turns.0"}, problem)[2] is problem


def test_pairs_of_foreign_columns(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": "Why?", "answers": [{"text": "Because.", "s": 2}, {"text": "No.", "s": 1}]},
        {"instruction": "How?", "answers": [{"text": "So.", "s": 2}]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    columns = {
        "prompt": "instruction",
        "chosen": "answers.0.text",
        "rejected": "answers.1.text",
        "chosen_score": "answers.0.s",
        "rejected_score": "answers.1.s",
    }
    (pair,), report = read_pairs(str(file), columns=columns, policy=RowPolicy(max_dropped=0.5))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Why?", "Because.", "No.")
    assert (pair.chosen_score, pair.rejected_score) == (2, 1)
    assert report.dropped == {"missing_field": 1}


def test_mt_benchs_own_file_reads(shared_data):
    file = str(shared_data / "mt_bench" / "mt_bench_question.jsonl")
    with pytest.raises(DataError, match="no column prompt"):
        read_prompts(file, policy=RowPolicy())
    prompts, report = read_prompts(file, columns={"question": "turns.0"}, policy=RowPolicy())
    assert (report.read, report.kept) == (80, 80)
    (turn,) = prompts[0].prompt
    assert turn.role == "user"
    assert turn.content.startswith("Compose an engaging travel blog post")
    second, _ = read_prompts(file, columns={"prompt": "turns.1"}, policy=RowPolicy())
    assert second[0].prompt.startswith("Rewrite your previous response.")
    questions, _ = read_questions(file, columns={"question": "turns.0"}, policy=RowPolicy())
    assert [q.prompt for q in questions] == [p.prompt for p in prompts]


def test_a_question_is_asked_in_place_of_the_rows_own_prompt(tmp_path):
    """Of a set whose column `prompt` holds the bare text of the user's turn."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "messages": []}))
    plain, _ = read_prompts(str(file), policy=RowPolicy())
    asked, _ = read_prompts(str(file), columns={"question": "prompt"}, policy=RowPolicy())
    assert plain[0].prompt == "Why?"
    assert [turn.role for turn in asked[0].prompt] == ["user"]
    _, _, row = mapped({"question": "turns.0", "prompt": "turns.1"}, {**ROW, "prompt": "own"})
    assert (row["question"], row["prompt"]) == ("first", "second")
