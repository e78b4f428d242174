"""Prompts of a file, a folder or a Hub data set; the rows of preference data will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.formats.pairs import pairs_from_rows
from align.data.images import ImageRef, refs_of
from align.data.messages import Message, Text, prompt_id
from align.data.problems import DroppedRow, RowProblem
from align.data.prompts import Prompt
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows
from align.errors import DataError

_TEXT: TypeAdapter[Text] = TypeAdapter(Text)


def read_prompts(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] = AS_THEY_ARE,
    policy: RowPolicy,
) -> tuple[list[Prompt], RowReport]:
    """Every different prompt once, in the order of the rows.

    A row is read for its column `prompt` (a text or messages) or `question` (a text, asked as a
    user's turn); a row without either must be a whole preference pair, whose prompt is taken.

    Args:
        path_or_id: as `align.data.pair_files.read_pairs` takes it.
        split: of a Hub data set or a folder of splits.
        revision: of a Hub data set.
        columns: as `align.data.column_map.with_columns` takes them.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: nothing can be read, or more than `policy.max_dropped` cannot be used.
    """
    report = RowReport()
    prompts: list[Prompt] = []
    seen: set[tuple[str, tuple[str, ...] | None]] = set()
    for source, number, row in with_columns(open_rows(path_or_id, split, revision), columns):
        try:
            text = prompt_of_row(source, number, row, policy)
            images = images_of_row(source, row)
            asked = (prompt_id(text), images)
            if asked in seen:
                raise RowProblem("equal", "prompt", "an earlier row has the same prompt")
        except RowProblem as problem:
            # A prompt that comes twice is no fault of the data: pairs share theirs.
            if problem.reason == "equal":
                report.notes["same_prompt"] += 1
            else:
                report.drop(DroppedRow.of(problem, source, number))
            continue
        seen.add(asked)
        group = row.get("group_id") if isinstance(row, Mapping) else None
        named = str(group) if group is not None else None
        prompts.append(
            Prompt(prompt=text, images=images, group_id=named, source=source, row=number)
        )
        report.keep()
    report.check(policy.max_dropped)
    return prompts, report


def images_of_row(source: str, row: Mapping[str, Any] | RowProblem) -> tuple[ImageRef, ...] | None:
    """What the prompt of a row shows: its column `images`, or `image`.

    Raises:
        RowProblem: something that names no picture.
    """
    if isinstance(row, RowProblem):
        return None
    column = "image" if row.get("images") is None else "images"
    return refs_of(row.get(column), column, source)


def prompt_of_row(
    source: str, number: int, row: Mapping[str, Any] | RowProblem, policy: RowPolicy
) -> Text:
    """The prompt of a row.

    Raises:
        RowProblem: there is none that can be asked.
    """
    if isinstance(row, RowProblem):
        raise row
    if row.get("prompt") is None and row.get("question") is not None:
        asked: Any = row["question"]
        if not isinstance(asked, str):
            raise RowProblem("wrong_type", "question", f"{type(asked).__name__}, expected a text")
        if not asked.strip():
            raise RowProblem("empty_prompt", "question", "it is empty or white space")
        return (Message(role="user", content=asked),)
    if row.get("prompt") is None:
        try:
            pairs, _ = pairs_from_rows([(source, number, row)], source=source, policy=policy)
        except DataError:
            detail = "no column prompt, and no preference pair to take one from"
            raise RowProblem("missing_field", "prompt", detail) from None
        if pairs[0].image_places is not None:
            detail = "prompts show pictures before the words of their first user turn"
            raise RowProblem("unsupported_content", "image_places", detail)
        return pairs[0].prompt
    value: Any = row["prompt"]
    try:
        text = _TEXT.validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        detail = f"{type(value).__name__}, expected a text or a list of messages"
        raise RowProblem("wrong_type", "prompt", detail) from None
    empty = not text.strip() if isinstance(text, str) else not text
    if empty:
        raise RowProblem("empty_prompt", "prompt", "it is empty or white space")
    if not isinstance(text, str) and text[-1].role == "assistant":
        raise RowProblem("wrong_roles", "prompt", "it ends with an assistant's turn")
    return text
