"""Questions with their answers, for searches and corrections that must know what is right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.messages import prompt_id
from align.data.problems import DroppedRow, RowProblem
from align.data.prompt_files import images_of_row, prompt_of_row
from align.data.questions import Question
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows

# GSM8K (Cobbe et al. 2021, arXiv 2110.14168): calculations in <<...>>, the answer behind ####.
_CALCULATION = re.compile(r"<<[^<>]*>>")
_FINAL = "####"


def read_questions(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] = AS_THEY_ARE,
    policy: RowPolicy,
) -> tuple[list[Question], RowReport]:
    """Every different question once, in the order of the rows.

    A row has a column `prompt` (a text or messages), or `question` (a text, asked as a user's
    turn), and may have `answer` (the final one) and `solution` (a whole response). Rows of GSM8K
    hold both in `answer`.

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
    questions: list[Question] = []
    seen: set[tuple[str, tuple[str, ...] | None]] = set()
    for source, number, row in with_columns(open_rows(path_or_id, split, revision), columns):
        try:
            question = _question_of(source, number, row, policy)
        except RowProblem as problem:
            report.drop(DroppedRow.of(problem, source, number))
            continue
        asked = (prompt_id(question.prompt), question.images)
        if asked in seen:
            report.notes["same_prompt"] += 1
            continue
        seen.add(asked)
        questions.append(question)
        report.keep()
    report.check(policy.max_dropped)
    return questions, report


def _question_of(
    source: str, number: int, row: Mapping[str, Any] | RowProblem, policy: RowPolicy
) -> Question:
    if isinstance(row, RowProblem):
        raise row
    answer, solution = _text(row, "answer"), _text(row, "solution")
    if answer is not None and solution is None and _FINAL in answer:
        reasoning, _, final = answer.rpartition(_FINAL)
        answer, solution = final.strip().replace(",", ""), _CALCULATION.sub("", reasoning).strip()
        solution = f"{solution}\n{_FINAL} {answer}"
    group = row.get("group_id")
    return Question(
        prompt=prompt_of_row(source, number, row, policy),
        images=images_of_row(source, row),
        answer=answer,
        solution=solution,
        group_id=None if group is None else str(group),
        source=source,
        row=number,
    )


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowProblem("wrong_type", key, f"{type(value).__name__}, expected a text")
    return value
