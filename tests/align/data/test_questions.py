"""Questions are read with their answers, from GSM8K's own rows and from plain columns."""

import json
from pathlib import Path

import pytest

from align.data.messages import Message
from align.data.question_files import read_questions
from align.data.row_policy import RowPolicy
from align.errors import DataError

POLICY = RowPolicy(max_dropped=0.5)


def written(folder: Path, *rows: object) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_real_questions_have_their_final_numbers(shared_data: Path) -> None:
    questions, report = read_questions(str(shared_data / "gsm8k/gsm8k_test.jsonl"), policy=POLICY)
    assert (report.read, len(questions)) == (1319, 1319)
    first = questions[0]
    assert isinstance(first.prompt, tuple)
    assert first.prompt[0].role == "user"
    assert first.answer == "18"
    assert first.solution is not None
    assert first.solution.endswith("#### 18")
    assert "<<" not in first.solution
    # Thousands are written with a comma in some rows.
    assert all(q.answer is not None and float(q.answer) == int(q.answer) for q in questions)


def test_plain_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "1+1=", "answer": "2", "solution": "1+1=2"},
        {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4"},
        {"prompt": "1+1=", "answer": "2"},
    )
    questions, report = read_questions(path, policy=POLICY)
    assert [(q.prompt, q.answer, q.solution) for q in questions] == [
        ("1+1=", "2", "1+1=2"),
        ((Message(role="user", content="2+2?"),), "4", None),
    ]
    assert report.notes == {"same_prompt": 1}


def test_a_row_that_asks_nothing_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "a?"}, {"question": " "}, {"prompt": "b", "answer": 3})
    _, report = read_questions(path, policy=RowPolicy(max_dropped=0.7))
    assert report.dropped == {"empty_prompt": 1, "wrong_type": 1}
    with pytest.raises(DataError, match="cannot be used"):
        read_questions(path, policy=POLICY)
