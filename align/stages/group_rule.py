"""Judged samples -> groups of completions: the rule `groups` of the select stage.

Every prompt is counted: read = kept + dropped by reason. So is every completion: kept, or left out
because it has no number (`not_judged`), is only the yardstick (`greedy`), is too long, is empty, or
because a filter of PF-PPO does not keep it (`not_drawn`).
Labels and advantages are made of the numbers of all judged completions, before a filter.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from align.data.completions import JudgedPrompt
from align.data.group_scores import Baseline, Label, advantages_of, labels_of
from align.data.groups import CompletionGroup, check_group
from align.data.messages import prompt_id
from align.data.problems import DroppedRow, RowProblem
from align.data.row_report import RowReport
from align.node import Conflict
from align.stages.filters import Filter, drawn_pair
from align.stages.rules import Rule, as_text, numbers_of


class Groups(Rule):
    """All judged completions of a prompt as one group, for objectives over groups."""

    rule: Literal["groups"] = "groups"
    """All judged completions of a prompt, as one group."""
    by: Literal["win_rate", "score"] | None = None
    """The group's scores: win_rate (against the other completions) or score; null takes win rates
    where the judge compared and scores where it scored."""
    label: Label | None = None
    """Makes labels of the scores, as {above: 0.5} or {best: 1}."""
    advantage: Baseline | Literal["greedy"] | None = None
    """Makes advantages of the scores: mean (above the mean of the prompt's completions), others (of
    the other ones), or greedy (above the likeliest answer, which `greedy: true` of the generate
    stage draws)."""
    filter: Filter | None = None
    """Which completions stay in the group, by PF-PPO: best_of_n (the best), best_random (the best
    and another one, drawn) or best_worst; null keeps all."""
    seed: int = Field(default=0, ge=0)
    """Of the filter's draw, together with the prompt and the round."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.advantage == "greedy" and self.by == "win_rate":
            yield (
                "advantage",
                "a win rate over the likeliest answer hangs on the other completions; write `by: "
                "score`, or mean or others",
            )


@dataclass
class Grouped:
    """The groups of a round, and the count of everything that is in none.

    Attributes:
        groups: in the order of the prompts.
        report: of the prompts.
        left_out: completions of kept prompts, by reason.
    """

    groups: list[CompletionGroup] = field(default_factory=list[CompletionGroup])
    report: RowReport = field(default_factory=RowReport)
    left_out: Counter[str] = field(default_factory=Counter[str])


def groups_of(judged: Iterable[JudgedPrompt], rule: Groups) -> Grouped:
    """The groups of every judged prompt, in order; completions stand in the order of sampling.

    Whether too much was lost is for the caller to check (`RowReport.check`).
    """
    found = Grouped()
    for row in judged:
        try:
            group, left_out = _group(row, rule)
        except RowProblem as problem:
            found.report.drop(DroppedRow.of(problem, row.source, row.row))
            continue
        found.report.keep()
        found.groups.append(group)
        found.left_out.update(left_out)
    return found


def unit_in(row: JudgedPrompt, rule: Groups) -> Literal["win_rate", "score"]:
    """What the scores of a group are."""
    return rule.by or ("win_rate" if row.scores is None else "score")


def _group(row: JudgedPrompt, rule: Groups) -> tuple[CompletionGroup, Counter[str]]:
    """The group of a prompt, and why its other completions are not in it.

    Raises:
        RowProblem: they make none.
    """
    numbers = numbers_of(row, unit_in(row, rule))
    places, left_out = _usable(row, rule, numbers)
    scores = [number for place in places if (number := numbers[place]) is not None]
    if not scores:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(left_out.items()))
        detail = f"none of {len(row.completions)} completions can be used ({reasons or 'none'})"
        raise RowProblem("not_judged", "completions", detail)
    labels = None if rule.label is None else labels_of(scores, rule.label)
    advantages = _advantages(row, rule, numbers, scores)
    stay = _stay(row, rule, scores)
    left_out["not_drawn"] += len(scores) - len(stay)
    finished = tuple(places[k] not in row.unfinished for k in stay)
    group = CompletionGroup(
        prompt=row.prompt,
        completions=tuple(as_text(row.prompt, row.completions[places[k]]) for k in stay),
        scores=tuple(scores[k] for k in stay),
        labels=None if labels is None else tuple(labels[k] for k in stay),
        advantages=None if advantages is None else tuple(advantages[k] for k in stay),
        finished=None if all(finished) else finished,
        group_id=row.group_id if row.group_id is not None else prompt_id(row.prompt),
        source=row.source,
        row=row.row,
    )
    check_group(group)
    return group, left_out


def _usable(
    row: JudgedPrompt, rule: Groups, numbers: Sequence[float | None]
) -> tuple[list[int], Counter[str]]:
    """Places of the completions that can be trained on, and the others by reason."""
    places: list[int] = []
    left_out: Counter[str] = Counter()
    for place, (text, number) in enumerate(zip(row.completions, numbers, strict=True)):
        if place == row.greedy:
            left_out["greedy"] += 1
        elif number is None:
            left_out["not_judged"] += 1
        elif not text.strip():
            left_out["empty_completion"] += 1
        elif rule.max_characters is not None and len(text) > rule.max_characters:
            left_out["too_long"] += 1
        else:
            places.append(place)
    return places, left_out


def _advantages(
    row: JudgedPrompt, rule: Groups, numbers: Sequence[float | None], scores: Sequence[float]
) -> tuple[float, ...] | None:
    if rule.advantage is None:
        return None
    if rule.advantage != "greedy":
        return advantages_of(scores, rule.advantage)
    baseline = None if row.greedy is None else numbers[row.greedy]
    if baseline is None:
        detail = f"the likeliest answer has no {unit_in(row, rule)}"
        raise RowProblem("not_judged", "completions", detail)
    return tuple(score - baseline for score in scores)


def _stay(row: JudgedPrompt, rule: Groups, scores: Sequence[float]) -> list[int]:
    """Places, among the usable completions, of those that the filter keeps; in their order."""
    if rule.filter is None or len(scores) == 1:
        return [*range(len(scores))]
    if rule.filter == "best_of_n":
        return [max(range(len(scores)), key=scores.__getitem__)]
    # Two of them, so each stands in the group with twice its weight as probability.
    draw = random.Random(f"{rule.seed}/{row.round}/{prompt_id(row.prompt)}")
    return sorted(drawn_pair(scores, rule.filter, draw))
