"""Judges that check instead of opine: rules, and answers known beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from align.errors import DataError, RecipeError
from align.judges.base import Answer, Answers, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.judges.table import question_of
from align.progress import progress
from align.reference import content_digest, digest

# The last number of a text: thousands may be parted by commas, decimals follow a point.
LAST_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?!.*\d)"


class KnownAnswers(JudgeNode):
    """Right where a completion gives the answer that a file knows."""

    by: Literal["answers"] = "answers"
    """Who judges: a file of known answers."""
    path: str = Field(min_length=1)
    """JSON lines file of {prompt, answer}."""
    pattern: str | None = Field(default=None, min_length=1)
    """Regular expression that finds the answer in a completion; null takes the last number."""
    gives: ClassVar[Answers | None] = "scores"

    def content(self) -> dict[str, str]:
        """Of the file."""
        return {"content": content_digest(self.path)}

    def look(self) -> None:
        """Reads the file.

        Raises:
            DataError: it cannot be read, or a line is none.
        """
        read_answers(self.path)

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge.

        Raises:
            DataError: the file cannot be read, or a line is none.
        """
        yield known_answer_judge(read_answers(self.path), self.pattern or LAST_NUMBER)


class RuleJudge:
    """Scores each answer by a function of its question and itself.

    Args:
        name: says which rule it is; part of the identity, with its version.
        rule: (question, completion) -> score, or why there is none. The question is the prompt, or
            its last message.
    """

    def __init__(self, name: str, rule: Callable[[str, str], float | JudgeFailed]) -> None:
        self.identity = f"rule:{name}"
        self._rule = rule

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One score, or the reason why there is none, per item in their order."""
        found: list[float | JudgeFailed] = []
        with progress("judge", len(items)) as advance:
            for item in items:
                found.append(self._rule(question_of(item.prompt), item.completion))
                advance()
        return found


def known_answer_judge(answers: Mapping[str, str], pattern: str = LAST_NUMBER) -> RuleJudge:
    """1.0 where what `pattern` finds in a completion is the known answer, else 0.0.

    Numbers are compared as numbers: "1,000.0" is "1000". A completion in which `pattern` finds
    nothing is wrong; a question without a known answer has no score.

    Args:
        answers: question -> answer.
        pattern: regular expression; its group 1 where it has one, else the whole match. Dots match
            line ends.

    Raises:
        RecipeError: `pattern` is no regular expression.
    """
    try:
        found_by = re.compile(pattern, flags=re.DOTALL)
    except re.error as error:
        raise RecipeError(
            f"The pattern {pattern!r} is no regular expression ({error}): mend it, or leave it out "
            "to take the last number of a completion."
        ) from error

    def rule(question: str, completion: str) -> float | JudgeFailed:
        if question not in answers:
            return JudgeFailed("unknown_question", "no answer to this question is known")
        match = found_by.search(completion)
        if match is None:
            return 0.0
        found = match[1] if found_by.groups else match[0]
        return float(found is not None and _canonical(found) == _canonical(answers[question]))

    parts = [pattern, *(part for pair in sorted(answers.items()) for part in pair)]
    return RuleJudge(f"known-answer-{digest(parts)[:16]}", rule)


def _canonical(answer: str) -> str:
    text = " ".join(answer.split()).casefold()
    number = re.fullmatch(r"(-?)0*(\d+)(?:\.(\d*?)0*)?", text.replace(",", ""), flags=re.ASCII)
    if number is None:
        return text
    sign, whole, decimals = number.groups()
    value = whole + (f".{decimals}" if decimals else "")
    return value if value == "0" else sign + value


def read_answers(path: str) -> dict[str, str]:
    """Question -> answer, out of a JSON lines file.

    Raises:
        DataError: it cannot be read, or a line is no {"prompt": ..., "answer": ...}.
    """
    known: dict[str, str] = {}
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The judge's answers {path} cannot be read ({error.strerror}). Write a JSON lines "
            'file of {"prompt": ..., "answer": ...}.'
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            known[str(row["prompt"])] = str(row["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number}: no {{"prompt": ..., "answer": ...}} stands there. Mend the '
                "line, or take it out."
            ) from error
    return known
