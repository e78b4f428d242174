"""Rows of completions -> groups, every bad row named, counted, kept out.

A row is one completion (TRL's unpaired format: `prompt`, `completion`, and `label`, `score`,
`advantage`, `token_advantage`, `token_weight`), or all of a prompt's: the same columns in the
plural, lists with one entry per completion. `finished` is false for the beginning of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align.data.formats.columns import number_of, weights_of
from align.data.formats.reading import Reading
from align.data.formats.shared_prompt import without_prompt
from align.data.groups import CompletionGroup, check_group
from align.data.messages import Message, Text
from align.data.problems import DroppedRow, RawRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport

BESIDE = ("score", "label", "advantage", "token_advantage", "token_weight")
TEXTS = ("prompt", "completion", "completions")
USED = (*TEXTS, "group_id", "finished", *BESIDE, *(f"{name}s" for name in BESIDE))


def groups_from_rows(
    rows_in_place: Iterable[RawRow], *, policy: RowPolicy
) -> tuple[list[CompletionGroup], RowReport]:
    """All groups that can be used, in order, and the report on the others.

    Args:
        rows_in_place: where each row stands (file, number), and the row or what keeps it from
            being one.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: more rows dropped than `policy.max_dropped`, or none left.
    """
    report = RowReport()
    reading = Reading(policy, report, explicit_prompt=True)
    groups: list[CompletionGroup] = []
    for place, number, raw in rows_in_place:
        reading.notes.clear()
        reading.placeholders.clear()
        try:
            if isinstance(raw, RowProblem):
                raise raw
            group = group_of_row(raw, reading, place, number)
            check_group(group, policy.on_empty)
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, place, number)
            policy.obey(dropped)
            report.drop(dropped)
            continue
        report.notes.update(reading.notes)
        report.keep()
        groups.append(group)
    report.check(policy.max_dropped)
    return groups, report


def group_of_row(
    row: Mapping[str, Any], reading: Reading, source: str, number: int
) -> CompletionGroup:
    """The record of a row.

    Args:
        row: as the source has it.
        reading: of this row.
        source: the file, or hub id@revision.
        number: 1-based number of the row in `source`.

    Raises:
        RowProblem: a column holds something that it may not.
    """
    reading.report.ignore_columns([key for key in row if key not in USED])
    prompt = reading.text_or_messages(row.get("prompt"), "prompt")
    several = row.get("completions") is not None
    given = row["completions"] if several else [row.get("completion")]
    if not isinstance(given, list) or not given:
        raise RowProblem("wrong_type", "completions", "no list of one completion or more")
    completions: list[Text] = []
    for k, value in enumerate(given):
        at = f"completions[{k}]" if several else "completion"
        completions.append(_continued(prompt, reading.text_or_messages(value, at), at))
    if len({isinstance(text, str) for text in completions}) > 1:
        raise RowProblem("wrong_type", "completions", "text and messages in one row")
    if isinstance(prompt, str) and not isinstance(completions[0], str):
        prompt = (Message(role="user", content=prompt),)
    if reading.placeholders:
        raise RowProblem("unsupported_content", reading.placeholders[0].at, "a picture")
    group = row.get("group_id")
    return CompletionGroup(
        prompt=prompt,
        completions=tuple(completions),
        scores=_numbers(row, "score", several=several),
        labels=_truths(row, "labels" if several else "label", several=several),
        advantages=_numbers(row, "advantage", several=several),
        token_advantages=_per_token(row, "token_advantage", several=several),
        token_weights=_per_token(row, "token_weight", several=several),
        finished=_truths(row, "finished", several=several),
        group_id=None if group is None else str(group),
        source=source,
        row=number,
    )


def _continued(prompt: Text, completion: Text, at: str) -> Text:
    """The completion without the prompt, which some data sets repeat in front of it."""
    if isinstance(completion, str):
        if not isinstance(prompt, str):
            raise RowProblem("wrong_type", at, "text behind a prompt of messages")
        return completion
    return completion if isinstance(prompt, str) else without_prompt(prompt, completion)


def _numbers(row: Mapping[str, Any], name: str, *, several: bool) -> tuple[float, ...] | None:
    if several:
        return weights_of(row, f"{name}s")
    return None if row.get(name) is None else (number_of(row[name], name),)


def _truths(row: Mapping[str, Any], column: str, *, several: bool) -> tuple[bool, ...] | None:
    values = row.get(column)
    if values is None:
        return None
    found: list[Any] = values if several and isinstance(values, list) else [values]
    # 0 and 1 are what a file without booleans has.
    if not all(value in (0, 1) for value in found):
        raise RowProblem("wrong_type", column, "something else than true or false")
    return tuple(bool(value) for value in found)


def _per_token(
    row: Mapping[str, Any], name: str, *, several: bool
) -> tuple[tuple[float, ...], ...] | None:
    if not several:
        values = weights_of(row, name)
        return None if values is None else (values,)
    lists = row.get(f"{name}s")
    if lists is None:
        return None
    if not isinstance(lists, list):
        raise RowProblem("bad_score", f"{name}s", "no list of lists")
    found = [weights_of({name: values}, name) for values in lists]
    return tuple(values or () for values in found)
