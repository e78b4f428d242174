"""What a world can be asked for; a recipe names one as `world:sums`, or `world:file.py:object`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Protocol

from align.errors import RecipeError

if TYPE_CHECKING:
    from align.data.messages import Text
    from align.data.pairs import PreferencePair
    from align.data.prompts import Prompt
    from align.data.questions import Question
    from align.estimates import Estimate
    from align.judges.base import PairJudge, ScoreJudge
    from align.judges.rule import RuleJudge

Split = Literal["train", "held_out"]


class Made(Protocol):
    """Pairs that a world made, and whatever it counts beside them; its text is for logs."""

    @property
    def pairs(self) -> Sequence[PreferencePair]:
        """In the order of the questions."""
        ...


class World(ABC):
    """A task that is built in code: a small model and, for all else, what it overrides.

    Attributes:
        name: what recipes call it, without the prefix.
        judged_by: whether its judge scores completions or compares two; None without a judge.
        max_new_tokens: of an answer in a sampled group; a longer one is left out.
    """

    name: str
    judged_by: ClassVar[Literal["scores", "comparisons"] | None] = None
    max_new_tokens: ClassVar[int] = 64

    @abstractmethod
    def base_model(self) -> Path:
        """An ordinary transformers folder, model and tokenizer; built once, then cached."""

    def prompts(self, split: Split, n: int, *, seed: int) -> list[Prompt]:
        """`n` different prompts of a split; the same for the same seed.

        Raises:
            ValueError: there are not so many.
        """
        self._has_no("prompts", n)

    def question(self, prompt: Prompt) -> Question:
        """One of its prompts with its right answer."""
        self._has_no("right answers to search for", prompt)

    def hint(self, prompt: Prompt) -> Text:
        """A demonstration that may be shown before one of its prompts, in the prompt's own form."""
        self._has_no("hints", prompt)

    def judge(self) -> ScoreJudge | PairJudge:
        """The exact judge of its prompts."""
        self._has_no("judge", None)

    def checks(self, *, loosely: bool) -> RuleJudge:
        """1.0 for a right answer and 0.0 for a wrong one, with or without case and white space."""
        self._has_no("judge of right and wrong", loosely)

    def outcome(self, question: str, completion: str) -> str | None:
        """What kind of an answer that is, where answers have kinds."""
        return None

    def sample_pairs(
        self,
        model: Any,
        tokenizer: Any,
        *,
        problems: int,
        samples_per_problem: int,
        temperature: float,
        seed: int,
    ) -> Made:
        """Pairs out of a model's own answers to `problems` prompts of the training split."""
        self._has_no("pairs", model)

    def measure(
        self, model: Any, tokenizer: Any, *, reference: Any, n: int, seed: int
    ) -> Mapping[str, Estimate]:
        """Metric -> number with its interval, on `n` held-out prompts.

        Args:
            model: left as it was found, as is the reference.
            tokenizer: of both.
            reference: what the model is compared with; the model itself before training.
            n: prompts.
            seed: of the choice of prompts, and of samples.
        """
        self._has_no("measure", model)

    def _has_no(self, what: str, _asked: Any) -> NoReturn:
        raise RecipeError(
            f"The world world:{self.name} has no {what}: name another world, or give the rows as a "
            "file."
        )
