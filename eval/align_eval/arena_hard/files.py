"""The files of Arena-Hard-Auto: questions, answers, judgments, battles.

question.jsonl                       uid, category, cluster or subcategory, prompt
model_answer/MODEL.jsonl             uid, ans_id, model, messages, tstamp, metadata (v2.0)
model_judgment/JUDGE/MODEL.jsonl     uid, category, judge, model, baseline, games

Source: lmarena/arena-hard-auto, commit 196f6b8.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import DataError
from align_eval.arena_hard.style import StyleCounts, style_counts
from align_eval.row_files import Row, by_key, read_rows, write_jsonl


@dataclass(frozen=True)
class Benchmark:
    """What a version of the benchmark fixes.

    Attributes:
        baselines: category -> the model that every other is compared with.
        interval: quantiles of the bootstrap that its table shows.
    """

    baselines: Mapping[str, str]
    interval: tuple[float, float]


BENCHMARKS: Mapping[str, Benchmark] = {
    "v0.1": Benchmark({"arena-hard-v0.1": "gpt-4-0314"}, (0.025, 0.975)),
    "v2.0": Benchmark(
        {
            "hard_prompt": "o3-mini-2025-01-31",
            "coding": "o3-mini-2025-01-31",
            "math": "o3-mini-2025-01-31",
            "creative_writing": "gemini-2.0-flash-001",
        },
        (0.05, 0.95),
    ),
}


@dataclass(frozen=True)
class ArenaQuestion:
    """One question of the file."""

    uid: str
    category: str
    prompt: str


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answer to one question.

    Attributes:
        style: counts of the file's own metadata, or None where it has none.
    """

    uid: str
    model: str
    text: str
    style: StyleCounts | None


def read_questions(path: Path) -> list[ArenaQuestion]:
    """A version's question.jsonl.

    Raises:
        DataError: a row lacks a field, or two have one uid.
    """
    rows = read_rows(path, needs=("uid", "category", "prompt"))
    by_key(rows, "uid", str(path))
    return [ArenaQuestion(row["uid"], row["category"], row["prompt"]) for row in rows]


def read_answers(path: Path) -> dict[str, ModelAnswer]:
    """One model's answers by uid.

    Raises:
        DataError: a row lacks a field or holds no answer, or two have one uid.
    """
    rows = by_key(read_rows(path, needs=("uid", "model", "messages")), "uid", str(path))
    return {uid: _answer(row, f"{path}, uid {uid}") for uid, row in rows.items()}


def _answer(row: Row, where: str) -> ModelAnswer:
    try:
        content = row["messages"][-1]["content"]
        text = content["answer"] if isinstance(content, dict) else content
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the last message holds no answer; its content must be an object with "
            "`answer`, or a text."
        )
    metadata = row.get("metadata")
    return ModelAnswer(
        row["uid"], row["model"], text, None if not metadata else StyleCounts.of(metadata, where)
    )


def answer_rows(
    questions: Sequence[ArenaQuestion],
    model: str,
    texts: Mapping[str, str],
    count_tokens: Callable[[str], int] | None = None,
) -> list[Row]:
    """Answers in the official format; with `count_tokens` they carry the style metadata."""
    rows: list[Row] = []
    for question in questions:
        text = texts[question.uid]
        row: Row = {
            "uid": question.uid,
            "ans_id": hashlib.sha256(f"{question.uid}/{model}/{text}".encode()).hexdigest()[:22],
            "model": model,
            "messages": [
                {"role": "user", "content": question.prompt},
                {"role": "assistant", "content": {"answer": text}},
            ],
            "tstamp": time.time(),
        }
        if count_tokens is not None:
            row["metadata"] = style_counts(text, count_tokens).to_json()
        rows.append(row)
    return rows


def write_answers(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """model_answer/MODEL.jsonl."""
    write_jsonl(path, rows)


def read_judgments(path: Path) -> list[Row]:
    """model_judgment/JUDGE/MODEL.jsonl; also the older `question_id` in place of `uid`.

    Raises:
        DataError: a row lacks a field, has not two games, or its question occurs twice.
    """
    rows = read_rows(path, needs=("model", "games"))
    for number, row in enumerate(rows, start=1):
        row.setdefault("uid", row.get("question_id"))
        if not isinstance(row["uid"], str) or len(row["games"]) != 2:
            raise DataError(
                f"{path}:{number}: a judgment needs a uid and two games, the baseline first and "
                f"then swapped; this one has {len(row['games'])} games."
            )
    pairs = [{"pair": f"{row['uid']}/{row['model']}"} for row in rows]
    by_key(pairs, "pair", str(path))
    return rows
