"""A preference model: a classifier that reads both answers at once, in both orders.

P(a beats b) = sigmoid(f(x, a, b) - f(x, b, a)). Exactly one number f is computed for each order,
whichever of the two is asked for first, so P(a beats b) + P(b beats a) = 1 to the last bit.
"""

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
from align.judges.base import (
    Answers,
    Bench,
    Comparison,
    JudgeFailed,
    JudgeNode,
    PairJudge,
    Prefers,
    Tie,
    Verdict,
)
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
from align.tokens.whole_rows import TWO_ANSWERS, WholeRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PreferenceModel(JudgeNode):
    """A trained classifier compares two completions, in both orders."""

    by: Literal["preference_model"] = "preference_model"
    """Who judges: a preference model."""
    model: str = Field(min_length=1)
    """Folder of a run with `kind: preference_model`, of its model, or its Hub id."""
    gives: ClassVar[Answers | None] = "comparisons"

    def content(self) -> dict[str, str]:
        """Of its folder; a Hub id is its own name."""
        return {"content": content_digest(folder_of(self.model))}

    def look(self) -> None:
        """Looks for its description, configuration and tokenizer.

        Raises:
            RecipeError: there is none, or it compares nothing.
        """
        self._refuse_others()
        look_for_classifier(self.model, "each_round", "preference model")

    @contextmanager
    def open(self, bench: Bench) -> Iterator[PairJudge]:
        """The judge, on this process's device.

        Raises:
            RecipeError: it cannot be loaded, or compares nothing.
        """
        self._refuse_others()
        model, tokenizer = load_classifier(self.model, "each_round")
        yield PreferenceModelJudge(model.to(PartialState().device).eval(), tokenizer)

    def _refuse_others(self) -> None:
        about = about_classifier(self.model)
        if about is None or about["kind"] != "preference_model" or about["rows"] != TWO_ANSWERS:
            what = "no preference model" if about is None else f"a model of kind {about['kind']}"
            raise RecipeError(
                f"each_round: {self.model!r} is {what}, or one whose rows are laid out otherwise: "
                "train one by a recipe with `kind: preference_model`, and name its run."
            )


class PreferenceModelJudge:
    """Compares answers in batches; P(first beats second) is exact, and a tie only where it is 1/2.

    Control tokens that an answer spells stay text. Nothing is cut: what is too long has no verdict.

    Args:
        model: with one output, on its device.
        tokenizer: of the model.
        max_length: most tokens of prompt and both answers; None takes the model's own number.
        batch_size: rows of one forward pass, two per comparison; it moves P by rounding only.

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
        self._pad, longest = one_output(model, "preference model")
        self.model = model
        self.max_length = max_length or longest
        self.batch_size = batch_size
        self._prompting = Prompting(tokenizer)
        self._whole = WholeRows(self._prompting.tokenizer)
        parts = [weights_digest(model), tokenizer_digest(tokenizer), repr(self.max_length)]
        self.identity = f"preference-model:{digest(parts)[:16]}"

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """One verdict per item, in their order."""
        found = [self._orders(item) for item in items]
        # Each pair of answers in one order of its own, so that the same passes are made, and the
        # same numbers come out, whichever answer is called the first.
        rows = [ids for item in found if not isinstance(item, JudgeFailed) for ids in sorted(item)]
        scores = iter(
            scores_of(
                self.model,
                rows,
                pad=self._pad,
                batch_size=self.batch_size,
                title="preference model",
            )
        )
        verdicts: list[Verdict] = []
        for item in found:
            if isinstance(item, JudgeFailed):
                verdicts.append(item)
                continue
            difference = next(scores) - next(scores)
            verdicts.append(verdict_of(difference if item == sorted(item) else -difference, item))
        return verdicts

    def _orders(self, item: Comparison) -> list[list[int]] | JudgeFailed:
        """Ids of the row with the first answer in front, and with the second one in front."""
        rows: list[TokenRow] = []
        for which, answer in (("first", item.first), ("second", item.second)):
            try:
                rows.append(self._prompting.row(item.prompt, answer))
            except RowProblem as problem:
                return JudgeFailed(problem.reason, f"{which} answer: {problem.detail}")
        chat = not isinstance(item.prompt, str)
        prompt_ids, one, other = rows[0].prompt_ids, rows[0].completion_ids, rows[1].completion_ids
        found = [
            self._whole.two(prompt_ids, one, other, chat=chat),
            self._whole.two(prompt_ids, other, one, chat=chat),
        ]
        if self.max_length is not None and max(map(len, found)) > self.max_length:
            return JudgeFailed("too_long", f"{len(found[0])} tokens, {self.max_length} fit")
        return found


def verdict_of(difference: float, rows: Sequence[Sequence[int]]) -> Verdict:
    """What f(first, second) - f(second, first) says, in nats of log odds.

    Args:
        difference: of the two orders.
        rows: ids of the two orders; the same ones where the answers are the same.
    """
    if rows[0] == rows[1] or difference == 0.0:
        return Tie()
    if not math.isfinite(difference):
        return JudgeFailed("not_finite", f"the preference model's log odds are {difference}")
    # Of the winner, whose complement is then exact.
    winning = 0.5 + 0.5 * math.tanh(abs(difference) / 2)
    if winning == 0.5:
        return Tie()
    if difference > 0:
        return Prefers("first", winning)
    return Prefers("second", 1.0 - winning)
