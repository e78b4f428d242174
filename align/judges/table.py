"""A judge that knows P(first beats second) exactly, from a table of outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.data.messages import Text
from align.errors import RecipeError
from align.judges.base import Comparison, Prefers, Tie, Verdict
from align.reference import digest


class TableJudge:
    """Looks both completions' outcomes up in a table.

    Args:
        outcomes: names of the table's rows.
        preference: P(row beats column), [n][n]; P + P^T = 1.
        outcome_of: (prompt, completion) -> one of `outcomes`; prompts of messages are given by
            their last one.

    Raises:
        RecipeError: the table is not square, or P + P^T is not 1.
    """

    def __init__(
        self,
        outcomes: Sequence[str],
        preference: Sequence[Sequence[float]],
        outcome_of: Callable[[str, str], str],
    ) -> None:
        n = len(outcomes)
        if len(preference) != n or any(len(row) != n for row in preference):
            raise RecipeError(
                f"A preference table for {n} outcomes must be {n} x {n}: give one row and one "
                "column per outcome."
            )
        for i in range(n):
            for j in range(i, n):
                p, q = preference[i][j], preference[j][i]
                if not (0 <= p <= 1 and abs(p + q - 1) < 1e-12):
                    raise RecipeError(
                        f"The preference table says that {outcomes[i]!r} beats {outcomes[j]!r} "
                        f"with probability {p:g} and the other way round with {q:g}: the two must "
                        "be in [0, 1] and add up to 1, and an outcome beats itself with 1/2."
                    )
        self._place = {name: i for i, name in enumerate(outcomes)}
        self._preference = preference
        self._outcome_of = outcome_of
        parts = [*outcomes, *(repr(float(p)) for row in preference for p in row)]
        self.identity = f"table:{digest(parts)[:16]}"

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """One exact verdict per item, in their order; 1/2 is a tie."""
        return [self._verdict(item) for item in items]

    def _verdict(self, item: Comparison) -> Verdict:
        question = question_of(item.prompt)
        i, j = (self._place[self._outcome_of(question, text)] for text in (item.first, item.second))
        p = self._preference[i][j]
        if p == 0.5:
            return Tie()
        return Prefers("first" if p > 0.5 else "second", p)


def question_of(prompt: Text) -> str:
    """The text that a prompt ends with: itself, or its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1].content
