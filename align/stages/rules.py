"""Judged samples -> preference pairs, by a rule of the recipe.

| rule | candidates of a prompt | chosen |
| --- | --- | --- |
| `best_vs_worst` | highest against lowest (SPPO, iterative DPO) | the higher |
| `random_pair` | two samples, whatever the judgement (INPO's theorem) | the winner |
| `all_pairs` | all K (K - 1) / 2 (SPO) | the winner |
| `tournament` | best and worst of a knockout (INPO in practice) | the best, if it wins |
| `filtered` | the best and another that a filter keeps (PF-PPO) | the best |

Every candidate is counted: read = kept + dropped by reason. A candidate without the verdict or
score that its rule needs is dropped as `not_judged`; no number ever stands in for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from pydantic import Field

from align.data.completions import JudgedPrompt
from align.data.messages import Message, Text, prompt_id
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import DroppedRow, RowProblem
from align.data.row_report import RowReport
from align.judges.matrix import Match, every_pair, replayed_tournament, win_rates
from align.node import Conflict, Node
from align.stages.filters import Filter, drawn_pair

Numbers = Sequence[float | None]


class Rule(Node):
    """What every rule can do."""

    max_characters: int | None = Field(default=None, ge=1)
    """A pair with a longer completion is dropped."""


class BestVsWorst(Rule):
    """The completion with the highest number against the one with the lowest; the first of equals.

    Completions without a number take no part; two with one are needed.
    """

    rule: Literal["best_vs_worst"] = "best_vs_worst"
    """Which two completions make a pair."""
    by: Literal["win_rate", "score"] | None = None
    """What is compared: win_rate (against the other completions) or the judge's score; null takes
    win rates where the judge compared and scores where it scored."""
    min_margin: float = Field(default=0.0, ge=0.0)
    """A pair that is closer, in the units of `by`, is dropped; equal ones always."""


class RandomPair(Rule):
    """Samples drawn two at a time, independently of the judgement: the pair law of INPO's theorem.

    Ties stay: to leave them out would make the law depend on the judgement. `chosen` is the winner
    and the judge's probability stays with the pair, so objectives that read `preference` lose
    nothing.
    """

    rule: Literal["random_pair"] = "random_pair"
    """Which two completions make a pair; this is the law of INPO's theorem."""
    pairs: int = Field(default=1, ge=1)
    """Drawn per prompt, from 2 x pairs different completions."""
    seed: int = Field(default=0, ge=0)
    """Of the draw, together with the prompt and the round."""


class AllPairs(Rule):
    """Every two completions."""

    rule: Literal["all_pairs"] = "all_pairs"
    """Which two completions make a pair."""
    by: Literal["win_rate", "score"] | None = None
    """Gives the margin and the scores of the pair: win_rate or score; null takes what there is."""
    min_margin: float = Field(default=0.0, ge=0.0)
    """A pair that is closer, in the units of `by`, is dropped."""
    ties: Literal["drop", "keep"] = "drop"
    """What becomes of a pair of which neither is better."""


class TournamentPair(Rule):
    """Best and worst of the knockout that `align.judges.matrix.knockout` describes."""

    rule: Literal["tournament"] = "tournament"
    """Which two completions make a pair."""
    min_margin: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Of P(best beats worst) above 1/2; a pair that is closer is dropped, a tie always."""


class Filtered(Rule):
    """Two completions that a filter of PF-PPO keeps (`align.stages.filters`): the best, another."""

    rule: Literal["filtered"] = "filtered"
    """Which two completions make a pair; the report tells how well the judge's numbers say what is
    right, before and behind each filter, where the prompts' world knows it."""
    filter: Filter = "best_random"
    """best_random: the best against any other; best_worst: against the worst, without a draw."""
    by: Literal["win_rate", "score"] | None = None
    """What ranks the completions: win_rate or score; null takes what there is."""
    min_margin: float = Field(default=0.0, ge=0.0)
    """A pair that is closer, in the units of `by`, is dropped; equal ones always."""
    seed: int = Field(default=0, ge=0)
    """Of the draw, together with the prompt and the round."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.filter == "best_of_n":
            yield (
                "filter",
                "best_of_n keeps one completion, and a pair needs two; write best_random or "
                "best_worst",
            )


SelectRule: TypeAlias = BestVsWorst | RandomPair | AllPairs | TournamentPair | Filtered
RULES: Mapping[str, type[SelectRule]] = {
    "best_vs_worst": BestVsWorst,
    "random_pair": RandomPair,
    "all_pairs": AllPairs,
    "tournament": TournamentPair,
    "filtered": Filtered,
}


def pairs_to_ask(
    rule: SelectRule, prompt: Text, round_number: int, k: int
) -> tuple[Match, ...] | None:
    """The comparisons that `rule` reads, so that a judge need not be asked for more.

    Args:
        rule: of the recipe.
        prompt: as it will stand in the `JudgedPrompt`.
        round_number: likewise.
        k: completions of the prompt.

    Returns:
        None for `tournament`, whose comparisons depend on their answers.
    """
    if isinstance(rule, TournamentPair):
        return None
    if isinstance(rule, RandomPair):
        return _drawn(rule, prompt, round_number, k)
    return every_pair(k)


def select(
    judged: Iterable[JudgedPrompt], rule: SelectRule
) -> tuple[list[PreferencePair], RowReport]:
    """The pairs of every judged prompt, in order, and the count of everything that made none.

    A pair carries `preference` = P(chosen beats rejected) where the judge compared the two, and as
    scores what the rule goes by: win rates, or the judge's scores. Whether too much was lost is for
    the caller to check (`RowReport.check`).
    """
    pairs: list[PreferencePair] = []
    report = RowReport()
    for row in judged:
        for candidate in _candidates(row, rule):
            try:
                if isinstance(candidate, RowProblem):
                    raise candidate
                pair = _pair(row, rule, candidate)
            except RowProblem as problem:
                report.drop(DroppedRow.of(problem, row.source, row.row))
                continue
            report.keep()
            pairs.append(pair)
    return pairs, report


def _candidates(row: JudgedPrompt, rule: SelectRule) -> Sequence[Match | RowProblem]:
    """The pairs of completions that the rule looks at; one problem where it finds none."""
    k = len(row.completions)
    needed = 2 * rule.pairs if isinstance(rule, RandomPair) else 2
    if k < needed:
        detail = f"{k} completions, the rule {rule.rule} needs {needed}"
        return [RowProblem("too_few_completions", "completions", detail)]
    match rule:
        case AllPairs():
            return every_pair(k)
        case RandomPair():
            return _drawn(rule, row.prompt, row.round, k)
        case BestVsWorst() | Filtered():
            known = {at: x for at, x in enumerate(numbers_of(row, rule.by)) if x is not None}
            if len(known) < 2:
                detail = f"{len(known)} of {k} completions have a {_unit(row, rule.by)}"
                return [RowProblem("not_judged", "completions", detail)]
            best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
            if best == worst:
                detail = f"all {len(known)} completions have the same {_unit(row, rule.by)}"
                return [RowProblem("tie", "completions", detail)]
            if isinstance(rule, BestVsWorst):
                return [(best, worst)]
            draw = random.Random(f"{rule.seed}/{row.round}/{prompt_id(row.prompt)}")
            places = drawn_pair([*known.values()], rule.filter, draw)
            (one, other) = ([*known][place] for place in places)
            return [(one, other)]
        case TournamentPair():
            found = None if row.preferences is None else replayed_tournament(row.preferences)
            if found is None:
                detail = "a comparison of the tournament gave no verdict"
                return [RowProblem("not_judged", "preferences", detail)]
            if found[0] == found[1]:
                return [RowProblem("tie", "preferences", "one completion came first and last")]
            return [found]


def _pair(row: JudgedPrompt, rule: SelectRule, candidate: Match) -> PreferencePair:
    """The two completions as a row, the better one first.

    Raises:
        RowProblem: they make no pair.
    """
    i, j = candidate
    p = None if row.preferences is None else row.preferences[i][j]
    by = rule.by if isinstance(rule, BestVsWorst | AllPairs | Filtered) else None
    numbers = numbers_of(row, by)
    better = _margin(row, rule, candidate, p, numbers)
    if better < 0:
        i, j = j, i
        p = None if row.preferences is None else row.preferences[i][j]
    scored = numbers[i] is not None and numbers[j] is not None
    pair = PreferencePair(
        prompt=row.prompt,
        chosen=as_text(row.prompt, row.completions[i]),
        rejected=as_text(row.prompt, row.completions[j]),
        chosen_score=numbers[i] if scored else None,
        rejected_score=numbers[j] if scored else None,
        preference=p,
        chosen_ends=False if i in row.unfinished else None,
        rejected_ends=False if j in row.unfinished else None,
        group_id=row.group_id if row.group_id is not None else prompt_id(row.prompt),
        source=row.source,
        row=row.row,
    )
    check_pair(pair)
    longest = max(len(row.completions[i]), len(row.completions[j]))
    if rule.max_characters is not None and longest > rule.max_characters:
        detail = f"{longest} characters, max_characters is {rule.max_characters}"
        raise RowProblem("too_long", "completions", detail)
    return pair


def _margin(
    row: JudgedPrompt, rule: SelectRule, candidate: Match, p: float | None, numbers: Numbers
) -> float:
    """Above 0 where the first of `candidate` is the better one, 0 where neither is.

    Raises:
        RowProblem: the rule drops the pair, or cannot tell.
    """
    first, second = (numbers[at] for at in candidate)
    difference = None if first is None or second is None else first - second
    if isinstance(rule, TournamentPair):
        assert p is not None, "the replayed tournament ends with this comparison"
        if p < 0.5:
            raise RowProblem("best_lost", "preferences", f"P(best beats worst) is {p:g}")
        better, margin = p - 0.5, p - 0.5
    elif isinstance(rule, BestVsWorst | Filtered):
        better = margin = difference
    else:
        # Who is better between these two: what the judge said about them, not about the others.
        better = difference if p is None else p - 0.5
        margin = difference
    if better is None:
        raise RowProblem("not_judged", "preferences", "the two completions were not compared")
    if isinstance(rule, RandomPair):
        return better
    if better == 0 and not (isinstance(rule, AllPairs) and rule.ties == "keep"):
        raise RowProblem("tie", "preferences", "neither of the two completions is better")
    if rule.min_margin > 0:
        if margin is None:
            raise RowProblem("not_judged", "completions", f"no {_unit(row, None)} for the margin")
        if abs(margin) < rule.min_margin:
            detail = f"the margin is {abs(margin):g}, min_margin is {rule.min_margin:g}"
            raise RowProblem("small_margin", "completions", detail)
    return better


def numbers_of(row: JudgedPrompt, by: str | None) -> Numbers:
    """One number per completion: its win rate or the judge's score; None where there is none."""
    none: Numbers = (None,) * len(row.completions)
    if _unit(row, by) == "win_rate":
        return none if row.preferences is None else win_rates(row.preferences)
    return none if row.scores is None else row.scores


def _unit(row: JudgedPrompt, by: str | None) -> str:
    return by or ("win_rate" if row.preferences is not None else "score")


def _drawn(rule: RandomPair, prompt: Text, round_number: int, k: int) -> tuple[Match, ...]:
    """Disjoint pairs of completions; none where there are too few."""
    if k < 2 * rule.pairs:
        return ()
    draw = random.Random(f"{rule.seed}/{round_number}/{prompt_id(prompt)}")
    drawn = draw.sample(range(k), 2 * rule.pairs)
    return tuple(zip(drawn[::2], drawn[1::2], strict=True))


def as_text(prompt: Text, completion: str) -> Text:
    """A completion in its prompt's own form."""
    return (
        completion if isinstance(prompt, str) else (Message(role="assistant", content=completion),)
    )
