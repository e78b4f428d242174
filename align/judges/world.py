"""The exact judge of a built-in world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from align import registry
from align.errors import RecipeError
from align.judges.base import Answers, Bench, JudgeNode, PairJudge, ScoreJudge


class WorldJudge(JudgeNode):
    """The world that the prompts come from judges them exactly."""

    by: Literal["world"] = "world"
    """Who judges: the world of the prompts."""

    def answers(self, prompts: str) -> Answers:
        """As the world does.

        Raises:
            RecipeError: the prompts are of no world, or of one without a judge.
        """
        return _judged(prompts).judged_by

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge | PairJudge]:
        """The judge.

        Raises:
            RecipeError: as for `answers`.
        """
        yield _judged(bench.prompts).judge()


def _judged(source: str) -> Any:
    """The world behind a source of prompts; worlds stand above judges, so it is found by name."""
    name = source.removeprefix(registry.WORLD)
    found: Any = None if name == source else registry.find("world", name).value
    if found is None or found.judged_by is None:
        raise RecipeError(
            f"each_round: `by: world` judges the prompts of a world, and prompts.source is "
            f"{source!r}; write world:sums or world:styles there, or name another judge."
        )
    return found() if isinstance(found, type) else found
