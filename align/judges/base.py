"""What a judge answers: a sum type in which no number stands for a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from align.records import Text

Side = Literal["first", "second"]


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt that a judge is to compare.

    Attributes:
        prompt: what both completions continue.
        first: one completion.
        second: the other one.
        id: says which comparison this is, in reports and messages.
        sample: number of the repetition, where one comparison is judged more than once.
    """

    prompt: Text
    first: str
    second: str
    id: str
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """One completion that a judge is to score."""

    prompt: Text
    completion: str
    id: str


@dataclass(frozen=True)
class Prefers:
    """One completion is better.

    Attributes:
        which: the one that this judge, this time, called better.
        probability: P(first beats second); exact where the judge knows it, else 1.0 or 0.0.
    """

    which: Side
    probability: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"P(first beats second) must be in [0, 1], not {self.probability}.")


@dataclass(frozen=True)
class Tie:
    """Neither is better, or the two orders of asking gave different winners."""


@dataclass(frozen=True)
class Refused:
    """The judge declined to compare."""

    detail: str


@dataclass(frozen=True)
class JudgeFailed:
    """There is no verdict.

    Attributes:
        reason: a short code, to be counted.
        detail: for people; never the text of a row.
    """

    reason: str
    detail: str


Verdict = Prefers | Tie | Refused | JudgeFailed


def probability(verdict: Verdict) -> float | None:
    """P(first beats second): 1/2 for a tie, None where there is no verdict."""
    match verdict:
        case Prefers(probability=value):
            return value
        case Tie():
            return 0.5
        case Refused() | JudgeFailed():
            return None


def opposite(verdict: Verdict) -> Verdict:
    """What the verdict says once the two completions have changed places."""
    if not isinstance(verdict, Prefers):
        return verdict
    which: Side = "second" if verdict.which == "first" else "first"
    return Prefers(which, 1.0 - verdict.probability)


class PairJudge(Protocol):
    """Compares completions two at a time."""

    @property
    def identity(self) -> str:
        """Everything that a verdict depends on besides the comparison."""
        ...

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """One verdict per item, in their order."""
        ...


class ScoreJudge(Protocol):
    """Gives every completion a number, in its own units."""

    @property
    def identity(self) -> str:
        """Everything that a score depends on besides the answer."""
        ...

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One finite number, or the reason why there is none, per item in their order."""
        ...
