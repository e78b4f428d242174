"""A world's own exact measurements of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from align import registry
from align.estimates import Estimate
from align.evaluation import Measurement, Subject
from align.node import Conflict
from align.worlds import PREFIX, world

ASKED = 1024  # questions, where the recipe does not say


class WorldMeasure(Measurement):
    """What a world says of a policy; a suite may write the world's name alone."""

    run: Literal["world"] = "world"
    """Which evaluation."""
    reads_start: ClassVar[bool] = True
    world: str = Field(min_length=1)
    """The world: sums, styles, scenes, or file.py:object of one's own."""

    def conflicts(self) -> Iterator[Conflict]:
        problem = registry.no_such_world(f"{PREFIX}{self._bare}")
        if problem is not None:
            yield "world", problem

    @property
    def label(self) -> str:
        """The world's own name."""
        return world(self.world).name

    @property
    def word(self) -> str:
        """As a suite writes it."""
        return f"{PREFIX}{self._bare}" if registry.is_path(self._bare) else self._bare

    def settings(self) -> Any:
        """The word, and the content of a world of one's own."""
        code = registry.find("world", self._bare).code
        return self.word if code is None else {"world": self.word, "code": code}

    @property
    def _bare(self) -> str:
        return self.world.removeprefix(PREFIX)

    def estimates(self, subject: Subject) -> Mapping[str, Estimate]:
        """The world's metrics on its held-out questions.

        Raises:
            RecipeError: the world measures nothing.
        """
        found = subject.in_memory(self.run)
        return world(self.world).measure(
            found.model,
            found.tokenizer,
            reference=found.reference,
            n=subject.n or ASKED,
            seed=subject.seed,
        )
