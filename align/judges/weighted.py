"""Several rewards as one: their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from align.errors import RecipeError
from align.judges.adaptive import Adapt, AdaptiveJudge
from align.judges.base import Answer, Answers, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.judges.by import JudgedBy
from align.node import Conflict
from align.reference import digest
from align.unions import Open


class WeightedReward(JudgedBy):
    """A judge that scores, and how much its scores count."""

    weight: float = 1.0
    """What its scores are multiplied by; a negative one punishes."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if isinstance(self, JudgeNode) and self.gives == "comparisons":
            yield "by", f"{self.by} compares two completions; a reward scores one"
        if isinstance(self, JudgeNode) and self.adapts:
            yield "adapt", "only the judge of a stage remembers rounds; write it there"


class WeightedRewards(JudgeNode):
    """The weighted sum of several scores; a completion without one of them has none."""

    by: Literal["rewards"] = "rewards"
    """Who judges: several rewards."""
    rewards: tuple[Annotated[WeightedReward, Open()], ...] = Field(min_length=1)
    """The rewards, each `{by: ..., weight: ...}` with the keys of that judge."""
    adapt: Adapt | None = None
    """How the weights follow the rewards from round to round; null leaves them as written."""
    gives: ClassVar[Answers | None] = "scores"

    @property
    def adapts(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the weights change from round to round."""
        return self.adapt is not None

    @property
    def _judges(self) -> Sequence[JudgeNode]:
        return cast("Sequence[JudgeNode]", self.rewards)

    @property
    def reads_columns(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of them does."""
        return any(judge.reads_columns for judge in self._judges)

    @property
    def reads_start(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of them does."""
        return any(judge.reads_start for judge in self._judges)

    def content(self) -> dict[str, str]:
        """Of all of them, by their place."""
        return {
            f"{place}/{name}": found
            for place, judge in enumerate(self._judges)
            for name, found in judge.content().items()
        }

    def look(self) -> None:
        """Looks for what each of them names."""
        for judge in self._judges:
            judge.look()

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge.

        Raises:
            RecipeError: its weights are to follow rounds, and there are none here.
        """
        weights = [reward.weight for reward in self.rewards]
        with ExitStack() as stack:
            opened: list[Any] = [stack.enter_context(judge.open(bench)) for judge in self._judges]
            if self.adapt is None:
                yield WeightedJudge(opened, weights)
                return
            if bench.state is None:
                raise RecipeError(
                    "adapt: weights follow what the judge stage of a loop saw, and this is none; "
                    "take it out, and write the weights."
                )
            labels = [str(reward.by) for reward in self.rewards]
            yield AdaptiveJudge(opened, labels, weights, self.adapt, bench.state)


class WeightedJudge:
    """Adds scores up.

    Args:
        judges: that score.
        weights: one per judge.
    """

    def __init__(self, judges: Sequence[ScoreJudge], weights: Sequence[float]) -> None:
        self._judges = judges
        self._weights = weights
        parts = [f"{w!r} {j.identity}" for w, j in zip(weights, judges, strict=True)]
        self.identity = f"rewards:{digest(parts)[:16]}"

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """The sum per item; the first failure where one of the judges has none."""
        columns = [judge.score(items) for judge in self._judges]
        return [self._sum(scores) for scores in zip(*columns, strict=True)]

    def _sum(self, scores: Sequence[float | JudgeFailed]) -> float | JudgeFailed:
        total = 0.0
        for weight, score in zip(self._weights, scores, strict=True):
            if isinstance(score, JudgeFailed):
                return score
            total += weight * score
        return total
