"""Pairs, or groups, are made of the judged completions: judged -> pairs, or groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from align.data.completions import JudgedPrompt
from align.data.messages import Text
from align.data.pairs import PreferencePair
from align.data.row_report import RowReport
from align.errors import DataError
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import StageContext, StageNode
from align.node import Node, joined
from align.stages.group_rule import Groups, groups_of
from align.stages.reliability import known_groups, reliability
from align.stages.rules import RULES, Filtered, SelectRule, numbers_of, select
from align.stages.workshop import Workshop

EVERY_RULE: Mapping[str, type[SelectRule | Groups]] = {**RULES, "groups": Groups}


class Select(StageNode):
    """Pairs, or groups, are made of the judged completions."""

    run: Literal["select"] = "select"
    """Which stage."""
    rule: Literal["best_vs_worst", "random_pair", "all_pairs", "tournament", "filtered", "groups"]
    """Which two completions make a pair; random_pair is the law of INPO's theorem, filtered keeps
    what a filter of PF-PPO does. groups makes one group of all, for objectives over groups."""
    max_dropped: float = Field(default=1.0, ge=0, le=1)
    """Share of candidates that may be dropped before the loop stops; ties are candidates."""
    needs_prompts: ClassVar[bool] = False
    chosen_by: ClassVar[str] = "rule"

    @classmethod
    def class_for(cls, written: Mapping[str, Any]) -> type[Node]:
        """This class with the keys of its rule."""
        rule: Any = EVERY_RULE.get(str(written.get("rule")))
        return cls if rule is None or issubclass(cls, rule) else joined(cls, rule)

    @classmethod
    def classes(cls) -> Mapping[str, type[Node]]:
        """The rules."""
        return EVERY_RULE

    @property
    def as_rule(self) -> SelectRule | Groups:
        """The same value as the settings of its rule."""
        return cast("SelectRule | Groups", self)

    def rule_settings(self) -> dict[str, Any]:
        """What the choice depends on; for a stage's key."""
        given = self.model_dump(
            mode="json", exclude={"run", "rule", "max_dropped"}, exclude_defaults=True
        )
        return {"rule": self.rule, **given}

    def stage(self, workshop: Workshop) -> SelectStage | GroupsStage:
        """The stage."""
        prompts = workshop.recipe.prompts
        kind = GroupsStage if self.rule == "groups" else SelectStage
        return kind(self, "" if prompts is None else prompts.source)


def select_of(nodes: Sequence[StageNode]) -> Select | None:
    """The select stage among the stages of a recipe."""
    return next((node for node in nodes if isinstance(node, Select)), None)


def _is_chosen_longer(pair: PreferencePair) -> bool:
    """In characters."""
    return len(_written(pair.chosen)) > len(_written(pair.rejected))


def _written(completion: Text) -> str:
    return completion if isinstance(completion, str) else completion[-1].content


@dataclass
class SelectStage:
    """Pairs are made of the judged completions."""

    node: Select
    source: str
    """Of the prompts, which may know what is right."""
    name: str = field(default="select", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("judged",), init=False)
    writes: tuple[str, ...] = field(default=("pairs",), init=False)

    def settings(self) -> Mapping[str, Any]:
        """The rule."""
        return self.node.rule_settings()

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one `PreferencePair` per line, and the count of the others."""
        judged = _judged(context)
        rule = cast("SelectRule", self.node)
        pairs, report = select(judged, rule)
        about = _counted(report)
        kept_ties = sum(pair.preference == 0.5 for pair in pairs)
        about["ties"] = report.dropped.get("tie", 0) + kept_ties
        if pairs:
            about["chosen_longer"] = sum(map(_is_chosen_longer, pairs)) / len(pairs)
        _refuse_nothing(context, self.node, f"pair of {len(judged)} prompts", report)
        if isinstance(rule, Filtered):
            about |= _reliability(judged, rule.by, self.source)
        write_lines(
            context.output("pairs"), [p.model_dump(mode="json", exclude_none=True) for p in pairs]
        )
        return about


@dataclass
class GroupsStage:
    """Groups are made of the judged completions."""

    node: Select
    source: str
    """Of the prompts, which may know what is right."""
    name: str = field(default="select", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("judged",), init=False)
    writes: tuple[str, ...] = field(default=("groups",), init=False)

    def settings(self) -> Mapping[str, Any]:
        """The rule."""
        return self.node.rule_settings()

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one `CompletionGroup` per line, and the count of everything that is in none."""
        judged = _judged(context)
        rule = cast("Groups", self.node)
        found = groups_of(judged, rule)
        _refuse_nothing(context, self.node, f"group of {len(judged)} prompts", found.report)
        about = _counted(found.report)
        scores = [score for group in found.groups for score in group.scores or ()]
        about["completions"] = len(scores)
        about["left_out"] = {reason: n for reason, n in sorted(found.left_out.items()) if n}
        about["mean_score"] = fmean(scores)
        # Nothing to compare: most losses over groups are 0 there.
        about["equal_scores"] = sum(
            len({*group.scores}) == 1 for group in found.groups if group.scores
        )
        if rule.label is not None:
            labels = [label for group in found.groups for label in group.labels or ()]
            about["desirable"] = fmean(labels)
        if rule.filter is not None:
            about |= _reliability(judged, rule.by, self.source)
        write_lines(
            context.output("groups"),
            [group.model_dump(mode="json", exclude_none=True) for group in found.groups],
        )
        return about


def _judged(context: StageContext) -> list[JudgedPrompt]:
    return [JudgedPrompt.model_validate(row) for row in read_lines(context.input("judged"))]


def _counted(report: RowReport) -> dict[str, Any]:
    counts = report.to_json()
    return {key: counts[key] for key in ("read", "kept", "dropped")}


def _refuse_nothing(context: StageContext, node: Select, what: str, report: RowReport) -> None:
    """Raises where nothing is left, or more is dropped than the recipe bears.

    Raises:
        DataError: with the count by reason.
    """
    if not report.kept:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(report.dropped.items()))
        raise DataError(
            f"Round {context.round}: the rule {node.rule} makes no {what} "
            f"({reasons or 'no reason given'}). Sample more completions, or take a rule that keeps "
            "more."
        )
    report.check(node.max_dropped)


def _reliability(judged: Sequence[JudgedPrompt], by: str | None, source: str) -> dict[str, float]:
    """Win rates are within a prompt; what is asked here is how far the reward itself goes."""
    numbers = [
        numbers_of(row, by or ("win_rate" if row.scores is None else "score")) for row in judged
    ]
    return reliability(known_groups(judged, numbers, source))
