"""What a group's scores say of each completion: whether it is desirable, how much better it is.

| `advantage` | A(y_k) of K completions of one prompt |
| --- | --- |
| `mean` | r_k - mean of all K (GRPO's baseline, unscaled; arXiv:2402.03300) |
| `others` | r_k - mean of the other K - 1 (RLOO; arXiv:2402.14740) |
| `greedy` | r_k - r of the prompt's likeliest answer (ReMax; arXiv:2310.10505) |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from pydantic import Field

from align.data.groups import CompletionGroup
from align.data.problems import RowProblem
from align.node import Conflict, Node

Baseline: TypeAlias = Literal["mean", "others"]


class Label(Node):
    """Which completions of a prompt are desirable: those that score above a number, or the best."""

    above: float | None = None
    """Desirable is a score above this number; 0.5 of right and wrong, or of a win rate."""
    best: int | None = Field(default=None, ge=1)
    """So many of each prompt are desirable, those with the highest scores; a prompt whose scores
    do not say which is dropped as a tie."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if (self.above is None) == (self.best is None):
            yield "above", "write one of the two, `{above: 0.5}` or `{best: 1}`"


def labels_of(scores: Sequence[float], label: Label) -> tuple[bool, ...]:
    """Whether each of a prompt's completions is desirable.

    Args:
        scores: [K], higher is better.
        label: by which rule.

    Raises:
        RowProblem: `too_few_completions`, where none would be left over by `best`; `tie`, where
            the last of the best is as good as the first of the others.
    """
    if label.best is None:
        assert label.above is not None, "a Label has one of the two"
        return tuple(score > label.above for score in scores)
    if len(scores) <= label.best:
        detail = f"{len(scores)} completions, label.best is {label.best}"
        raise RowProblem("too_few_completions", "completions", detail)
    ranked = sorted(scores, reverse=True)
    last, next_one = ranked[label.best - 1], ranked[label.best]
    if last == next_one:
        detail = f"the scores do not say which {label.best} of {len(scores)} are best"
        raise RowProblem("tie", "scores", detail)
    return tuple(score >= last for score in scores)


def advantages_of(scores: Sequence[float], baseline: Baseline) -> tuple[float, ...]:
    """How much better each of a prompt's completions is than was to be expected.

    Args:
        scores: [K], higher is better.
        baseline: what was to be expected.

    Raises:
        RowProblem: `too_few_completions`, where one alone has no others.
    """
    k, total = len(scores), sum(scores)
    if baseline == "mean":
        return tuple(score - total / k for score in scores)
    if k < 2:
        detail = "1 completion, advantage: others needs 2"
        raise RowProblem("too_few_completions", "completions", detail)
    return tuple(score - (total - score) / (k - 1) for score in scores)


def with_columns_of_scores(
    group: CompletionGroup, label: Label | None, advantage: Baseline | None
) -> CompletionGroup:
    """The group with labels and advantages made of its scores, where these are asked for.

    Raises:
        RowProblem: `missing_field`, where there are no scores; `bad_score`, where what would be
            made is there already; or as `labels_of` and `advantages_of`.
    """
    made: dict[str, tuple[float, ...] | tuple[bool, ...]] = {}
    for key, column, asked in (
        ("label", "labels", label),
        ("advantage", "advantages", advantage),
    ):
        if asked is None:
            continue
        if getattr(group, column) is not None:
            detail = f"the row has its own, and data.{key} would make them; keep one of the two"
            raise RowProblem("bad_score", column, detail)
        if group.scores is None:
            raise RowProblem("missing_field", "scores", f"data.{key} is made of them")
    if label is not None and group.scores is not None:
        made["labels"] = labels_of(group.scores, label)
    if advantage is not None and group.scores is not None:
        made["advantages"] = advantages_of(group.scores, advantage)
    return group.model_copy(update=made) if made else group
