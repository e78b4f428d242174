"""What a judge answers: a sum type in which no number stands for a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from align.data.messages import Text
from align.node import Node

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


Answers = Literal["scores", "comparisons"]


@dataclass(frozen=True)
class Asked:
    """The row of a prompt that is judged.

    Attributes:
        source: the file, or hub id@revision.
        row: 1-based number in it.
        columns: of the row, besides the prompt.
    """

    source: str
    row: int
    columns: Mapping[str, Any]


def _no_rows(prompt_id: str) -> Asked | None:
    return None


@dataclass(frozen=True)
class Bench:
    """What judges find where they work.

    Attributes:
        folder: of the run; a server's answers are kept in it.
        prompts: what the recipe names as source of its prompts, such as world:sums.
        row_of: id of a prompt's text -> its row, where it is known.
        start: folder or hub id of the policy that the run begins with; empty where there is none.
        state: what a judge that adapts itself left in the round before, empty in the first; None
            where nothing is remembered.
    """

    folder: Path
    prompts: str
    row_of: Callable[[str], Asked | None] = field(default=_no_rows)
    start: str = ""
    state: Mapping[str, Any] | None = None


class JudgeNode(Node):
    """What `by` names in a judge stage: the settings of a judge, which it makes.

    Children state `by`, the word that recipes write.
    """

    by: Any  # a Literal in every child
    """Who judges: world (exact), answers (a file of known ones), reward_model, preference_model
    (compares, in both orders), implicit (of a model trained by DPO), llm (asked pairwise), rewards
    (a weighted sum), instructions (checks of the row's own), or a function of one's own as
    file.py:function."""
    gives: ClassVar[Answers | None] = None
    """Whether it scores completions or compares two; None where that depends on the prompts."""
    reads_columns: ClassVar[bool] = False
    """Whether the columns of a prompt's row reach it."""
    reads_start: ClassVar[bool] = False
    """Whether its verdicts depend on the policy that the run begins with."""
    adapts: ClassVar[bool] = False
    """Whether it goes by what it saw in earlier rounds: the judge that it opens has a `state`."""

    def answers(self, prompts: str) -> Answers:
        """Whether it scores completions of a source's prompts, or compares two.

        Raises:
            RecipeError: it can judge nothing of that source.
        """
        assert self.gives is not None, "a judge that depends on the prompts overrides this"
        return self.gives

    def content(self) -> dict[str, str]:
        """Digests of what it names, for a stage's key."""
        return {}

    def look(self) -> None:
        """Looks for the files and models that it names, without loading any.

        Raises:
            AlignError: one is not there, or is something else.
        """

    def open(self, bench: Bench) -> AbstractContextManager[PairJudge | ScoreJudge]:
        """The judge; what it opened is closed afterwards."""
        raise NotImplementedError
