"""What a policy's log-probs say about held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from align.errors import RecipeError
from align.estimates import Estimate
from align.evaluation import Measurement, Subject
from align.forest import TokenRow
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.vision.columns import sides_of
from align.tokens.vision.pixels import pictures_of
from align.types import Pair
from align_eval.metrics import preference_metrics, score_pairs

ROWS = 64  # of one forward pass
MEASURED = 1024  # pairs at most, where the recipe does not say


class Preference(Measurement):
    """Accuracy, margins and log-ratios on the held-out pairs, relative to the start policy."""

    run: Literal["preference"] = "preference"
    """Which evaluation."""
    needs_pairs: ClassVar[bool] = True

    def estimates(self, subject: Subject) -> Mapping[str, Estimate]:
        """The metrics of `preference_metrics`.

        Raises:
            RecipeError: there are no held-out pairs.
        """
        if not subject.held_out:
            raise RecipeError(
                "evaluate.suite asks for 'preference' and there are no held-out pairs: keep "
                "some rows out of training, or take 'preference' out of the suite."
            )
        found = subject.in_memory(self.run)
        pairs = subject.held_out[: subject.n or MEASURED]
        return measured_pairs(found.model, found.tokenizer, found.reference, pairs)


def measured_pairs(
    model: PreTrainedModel,
    tokenizer: Any,
    reference: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
) -> dict[str, Estimate]:
    """`preference_metrics` of a model; it and the reference are left as they were found."""
    rows = Pair(
        [TokenRow(pair.prompt_ids, pair.chosen_ids) for pair in pairs],
        [TokenRow(pair.prompt_ids, pair.rejected_ids) for pair in pairs],
    )
    sides = [sides_of(pair.pair) for pair in pairs]
    pictures = Pair(*(pictures_of(tokenizer, shown) for shown in zip(*sides, strict=True)))
    policy = score_pairs(model, rows, batch_size=ROWS, pictures=pictures)
    if reference is model:
        return preference_metrics(policy, policy)
    return preference_metrics(
        policy, score_pairs(reference, rows, batch_size=ROWS, pictures=pictures)
    )
