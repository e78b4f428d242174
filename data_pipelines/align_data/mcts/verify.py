"""Whether an answer is right: outcome rewards for the search."""

from __future__ import annotations

from typing import Protocol

from align.data.questions import Question
from align.judges.base import Answer, JudgeFailed
from align.judges.rule import LAST_NUMBER, known_answer_judge
from align.judges.table import question_of
from align.worlds.sums import sums_judge

GSM8K_MARK = "####"


class Verifier(Protocol):
    """Checks finished answers."""

    @property
    def identity(self) -> str:
        """Everything that a verdict depends on besides question and answer."""
        ...

    def right(self, question: Question, answer_text: str) -> bool | None:
        """None where this question cannot be verified."""
        ...


class SumsVerifier:
    """The exact judge of the world of sums; the questions need no known answer."""

    identity = "verifier:sums"

    def __init__(self) -> None:
        self._judge = sums_judge()

    def right(self, question: Question, answer_text: str) -> bool | None:
        found = self._judge.score([Answer(question.prompt, answer_text, "")])[0]
        return None if isinstance(found, JudgeFailed) else found == 1.0


class KnownAnswerVerifier:
    """What a pattern finds in an answer, by default its last number, must be the known answer.

    Numbers are compared as numbers: "1,000.0" is "1000". A question without a known answer cannot
    be verified.
    """

    def __init__(self, pattern: str = LAST_NUMBER) -> None:
        self.identity = f"verifier:known-answer/{pattern}"
        self._pattern = pattern
        known_answer_judge({}, pattern)

    def right(self, question: Question, answer_text: str) -> bool | None:
        if question.answer is None:
            return None
        asked = question_of(question.prompt)
        judge = known_answer_judge({asked: question.answer}, self._pattern)
        return judge.score([Answer(question.prompt, answer_text, "")])[0] == 1.0


def gsm8k_answer(solution: str) -> str | None:
    """What stands behind the last `####` of a GSM8K solution; None where there is none."""
    _, mark, answer = solution.rpartition(GSM8K_MARK)
    return (answer.strip() or None) if mark else None
