"""Completions to be imitated: prompt and completion, or the last answer of a conversation.

A demonstration is kept as a pair whose rejected side is a stand-in, so that it is checked, cut and
encoded exactly as the chosen side of a preference pair with the same texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.formats.reading import Reading
from align.data.messages import Message, Text
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import DroppedRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows

CONVERSATIONS = ("messages", "conversations", "conversation")
READ = ("prompt", "completion", "group_id", *CONVERSATIONS)
# What stands in for a rejected completion; nobody trains on it or measures it.
_STAND_INS = ("0", "1")


def read_demonstrations(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] = AS_THEY_ARE,
    policy: RowPolicy,
) -> tuple[list[PreferencePair], RowReport]:
    """All demonstrations of a source that can be used, in order, and the report on the others.

    A row has `prompt` and `completion` (both text, or both messages), or a whole conversation in
    `messages` (or `conversations`), whose last turn, an assistant's, is the completion; what the
    assistant said before it is part of the prompt and teaches nothing.

    Args:
        path_or_id: as `align.data.pair_files.read_pairs` takes it.
        split: likewise.
        revision: likewise.
        columns: likewise.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: no such source, more rows dropped than `policy.max_dropped`, or none left.
        MachineError: the Hub cannot be reached.
    """
    report = RowReport()
    reading = Reading(policy, report, explicit_prompt=True)
    found: list[PreferencePair] = []
    for source, number, row in with_columns(open_rows(path_or_id, split, revision), columns):
        reading.notes.clear()
        reading.placeholders.clear()
        try:
            if isinstance(row, RowProblem):
                raise row
            pair = _demonstration(row, reading, source, number)
            check_pair(pair)
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, source, number)
            policy.obey(dropped)
            report.drop(dropped)
            continue
        report.notes.update(reading.notes)
        report.keep()
        found.append(pair)
    report.check(policy.max_dropped)
    return found, report


def _demonstration(
    row: Mapping[str, Any], reading: Reading, source: str, number: int
) -> PreferencePair:
    prompt, completion = _texts(row, reading)
    if isinstance(prompt, str) != isinstance(completion, str):
        raise RowProblem("wrong_type", "completion", "one of prompt and completion is messages")
    if reading.placeholders:
        raise RowProblem("unsupported_content", reading.placeholders[0].at, "a picture")
    reading.report.ignore_columns([key for key in row if key not in READ])
    other = _STAND_INS[0] if _content(completion) != _STAND_INS[0] else _STAND_INS[1]
    rejected: Text = other
    if not isinstance(completion, str):
        rejected = (Message(role="assistant", content=other),)
    group = row.get("group_id")
    return PreferencePair(
        prompt=prompt,
        chosen=completion,
        rejected=rejected,
        group_id=None if group is None else str(group),
        source=source,
        row=number,
    )


def _texts(row: Mapping[str, Any], reading: Reading) -> tuple[Text, Text]:
    if row.get("completion") is not None:
        return (
            reading.text_or_messages(row.get("prompt"), "prompt"),
            reading.text_or_messages(row["completion"], "completion"),
        )
    column = next((name for name in CONVERSATIONS if row.get(name) is not None), None)
    if column is None:
        held = ", ".join(map(str, row)) or "nothing"
        raise RowProblem(
            "missing_field", "completion", f"neither prompt and completion nor messages, but {held}"
        )
    turns = reading.messages(row[column], column)
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise RowProblem(
            "wrong_roles", column, "a conversation to imitate ends with an assistant's answer"
        )
    return turns[:-1], turns[-1:]


def _content(completion: Text) -> str:
    return completion if isinstance(completion, str) else completion[-1].content
