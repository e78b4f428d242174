"""A reward model: a transformers sequence classifier with one output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from accelerate import PartialState
from pydantic import Field

from align.data.problems import RowProblem
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.judges.base import Answer, Answers, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.policies.classifiers import (
    about_classifier,
    load_classifier,
    look_for_classifier,
    one_output,
    scores_of,
)
from align.policies.fetched import folder_of
from align.policies.prompting import Prompting
from align.reference import content_digest, digest, tokenizer_digest, weights_digest
from align.tokens.whole_rows import WholeRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModel(JudgeNode):
    """A sequence classifier with one output scores each completion."""

    by: Literal["reward_model"] = "reward_model"
    """Who judges: a reward model."""
    path: str = Field(min_length=1)
    """Folder or Hub id (`id@revision`) of the reward model, or the folder of a run that trained
    it."""
    gives: ClassVar[Answers | None] = "scores"

    def content(self) -> dict[str, str]:
        """Of its folder; a Hub id is its own name."""
        return {"content": content_digest(folder_of(self.path))}

    def look(self) -> None:
        """Looks for its configuration and tokenizer.

        Raises:
            RecipeError: there is none, or it is no classifier with one output.
        """
        self._refuse_comparisons()
        look_for_classifier(self.path, "each_round", "reward model")

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge, on this process's device.

        Raises:
            RecipeError: it cannot be loaded, or is no classifier with one output.
        """
        self._refuse_comparisons()
        model, tokenizer = load_classifier(self.path, "each_round")
        yield RewardModelJudge(model.to(PartialState().device).eval(), tokenizer)

    def _refuse_comparisons(self) -> None:
        about = about_classifier(self.path)
        if about is not None and about["kind"] != "reward":
            raise RecipeError(
                f"each_round: {self.path!r} holds a preference model, which compares two answers "
                f"and scores none: write `by: preference_model` with `model: {self.path}`."
            )


class RewardModelJudge:
    """Scores answers in batches, by the reward model's own logit.

    Control tokens that an answer spells stay text. Nothing is cut: what does not fit has no score.

    Args:
        model: with one output, on its device.
        tokenizer: of the model.
        max_length: most tokens of prompt and completion; None takes the model's own number.
        batch_size: answers of one forward pass; it changes scores by rounding only.

    Raises:
        RecipeError: the model has more outputs than one, or no padding token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self._pad, longest = one_output(model, "reward model")
        self.model = model
        self.max_length = max_length or longest
        self.batch_size = batch_size
        self._prompting = Prompting(tokenizer)
        self._whole = WholeRows(self._prompting.tokenizer)
        parts = [weights_digest(model), tokenizer_digest(tokenizer), repr(self.max_length)]
        self.identity = f"reward-model:{digest(parts)[:16]}"

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One finite number, or the reason why there is none, per item in their order."""
        found = [self._encoded(item) for item in items]
        rows = [ids for ids in found if not isinstance(ids, JudgeFailed)]
        scores = iter(
            scores_of(
                self.model, rows, pad=self._pad, batch_size=self.batch_size, title="reward model"
            )
        )
        return [ids if isinstance(ids, JudgeFailed) else _finite(next(scores)) for ids in found]

    def _encoded(self, item: Answer) -> list[int] | JudgeFailed:
        try:
            row: TokenRow = self._prompting.row(item.prompt, item.completion)
        except RowProblem as problem:
            return JudgeFailed(problem.reason, f"{problem.field}: {problem.detail}")
        chat = not isinstance(item.prompt, str)
        ids = self._whole.one(row.prompt_ids, row.completion_ids, chat=chat)
        if self.max_length is not None and len(ids) > self.max_length:
            return JudgeFailed("too_long", f"{len(ids)} tokens, {self.max_length} fit")
        return ids


def _finite(value: float) -> float | JudgeFailed:
    if math.isfinite(value):
        return value
    return JudgeFailed("not_finite", f"the reward model's score is {value}")
