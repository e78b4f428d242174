"""Files of completions to imitate: which rows are read how, and which are not."""

import json
from pathlib import Path

import pytest

from align.data.demonstrations import read_demonstrations
from align.data.messages import Message
from align.data.row_policy import RowPolicy
from align.errors import DataError

USER = {"role": "user", "content": "What?"}
SAID = {"role": "assistant", "content": "That."}
GOOD = {
    "plain": ({"prompt": "1+1=", "completion": "2"}, "1+1=", "2"),
    "messages on both sides": (
        {"prompt": [USER], "completion": [SAID]},
        (Message(**USER),),
        (Message(**SAID),),
    ),
    "conversation": (
        {"messages": [USER, SAID, USER, {"role": "assistant", "content": "More."}]},
        (Message(**USER), Message(**SAID), Message(**USER)),
        (Message(role="assistant", content="More."),),
    ),
    "sharegpt's spelling": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        (Message(role="user", content="Q"),),
        (Message(role="assistant", content="A"),),
    ),
    "like the stand-in": ({"prompt": "0+0=", "completion": "0"}, "0+0=", "0"),
}
BAD = {
    "missing_field": {"text": "all in one"},
    "wrong_type": {"prompt": "plain", "completion": [SAID]},
    "wrong_roles": {"messages": [USER, SAID, USER]},
    "empty_completion": {"prompt": "1+1=", "completion": "  "},
    "empty_prompt": {"prompt": "", "completion": "2"},
}


def read(folder: Path, rows, **policy):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_demonstrations(str(path), policy=RowPolicy(**{"max_dropped": 1.0} | policy))


@pytest.mark.parametrize("case", GOOD)
def test_rows_are_read(case: str, tmp_path: Path) -> None:
    row, prompt, completion = GOOD[case]
    (pair,), report = read(tmp_path, [row])
    assert (pair.prompt, pair.chosen) == (prompt, completion)
    assert pair.rejected != pair.chosen
    assert (report.read, report.kept, pair.row) == (1, 1, 1)


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_cannot_be_used_is_named(reason: str, tmp_path: Path) -> None:
    pairs, report = read(tmp_path, [GOOD["plain"][0], BAD[reason]])
    assert len(pairs) == 1
    assert [(row.reason, row.row) for row in report.rows] == [(reason, 2)]


def test_columns_of_foreign_files_are_mapped_and_unread_ones_are_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Q", "answers": ["A"], "id": 7}) + "\n")
    columns = {"prompt": "instruction", "completion": "answers.0"}
    (pair,), report = read_demonstrations(str(path), columns=columns, policy=RowPolicy())
    assert (pair.prompt, pair.chosen) == ("Q", "A")
    assert report.ignored_columns == ["instruction", "answers", "id"]


def test_the_policy_is_obeyed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.on_empty is 'error'"):
        read(tmp_path, [BAD["empty_prompt"]], on_empty="error")
    with pytest.raises(DataError, match="over the limit"):
        read(tmp_path, [GOOD["plain"][0], BAD["missing_field"]], max_dropped=0.1)
