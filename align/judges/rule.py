"""Judges that check instead of opine: the world of sums, and answers known beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from align.errors import RecipeError
from align.judges.base import Answer, JudgeFailed
from align.judges.table import question_of
from align.reference import digest

# The last number of a text: thousands may be parted by commas, decimals follow a point.
LAST_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?!.*\d)"


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
        return [self._rule(question_of(item.prompt), item.completion) for item in items]


def sums_judge() -> RuleJudge:
    """1.0 for a right answer in the world of sums, else 0.0."""
    from align.worlds import sums

    def rule(question: str, completion: str) -> float | JudgeFailed:
        match = re.fullmatch(r"(\d+)\+(\d+)\+(\d+)\?", question, flags=re.ASCII)
        if match is None:
            return JudgeFailed("not_a_sum", "the prompt is no question of the world of sums")
        a, b, c = map(int, match.groups())
        return float(sums.judge((a, b, c), completion).right)

    return RuleJudge("sums", rule)


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
