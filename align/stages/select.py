"""Pairs are made of the judged completions: judged -> pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from align.data.completions import JudgedPrompt
from align.data.messages import Text
from align.data.pairs import PreferencePair
from align.errors import DataError
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import StageContext, StageNode
from align.node import Node, joined
from align.stages.reliability import known_groups, reliability
from align.stages.rules import RULES, Filtered, SelectRule, numbers_of, select
from align.stages.workshop import Workshop


class Select(StageNode):
    """Pairs are made of the judged completions."""

    run: Literal["select"] = "select"
    """Which stage."""
    rule: Literal["best_vs_worst", "random_pair", "all_pairs", "tournament", "filtered"]
    """Which two completions make a pair; random_pair is the law of INPO's theorem, filtered keeps
    what a filter of PF-PPO does."""
    max_dropped: float = Field(default=1.0, ge=0, le=1)
    """Share of candidates that may be dropped before the loop stops; ties are candidates."""
    needs_prompts: ClassVar[bool] = False
    chosen_by: ClassVar[str] = "rule"

    @classmethod
    def class_for(cls, written: Mapping[str, Any]) -> type[Node]:
        """This class with the keys of its rule."""
        rule: Any = RULES.get(str(written.get("rule")))
        return cls if rule is None or issubclass(cls, rule) else joined(cls, rule)

    @classmethod
    def classes(cls) -> Mapping[str, type[Node]]:
        """The rules."""
        return RULES

    @property
    def as_rule(self) -> SelectRule:
        """The same value as the settings of its rule."""
        return cast("SelectRule", self)

    def rule_settings(self) -> dict[str, Any]:
        """What the choice depends on; for a stage's key."""
        given = self.model_dump(
            mode="json", exclude={"run", "rule", "max_dropped"}, exclude_defaults=True
        )
        return {"rule": self.rule, **given}

    def stage(self, workshop: Workshop) -> SelectStage:
        """The stage."""
        prompts = workshop.recipe.prompts
        return SelectStage(self, "" if prompts is None else prompts.source)


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
        judged = [JudgedPrompt.model_validate(row) for row in read_lines(context.input("judged"))]
        rule = self.node.as_rule
        pairs, report = select(judged, rule)
        counts = report.to_json()
        about = {key: counts[key] for key in ("read", "kept", "dropped")}
        kept_ties = sum(pair.preference == 0.5 for pair in pairs)
        about["ties"] = report.dropped.get("tie", 0) + kept_ties
        if pairs:
            about["chosen_longer"] = sum(map(_is_chosen_longer, pairs)) / len(pairs)
        if not pairs:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(report.dropped.items()))
            raise DataError(
                f"Round {context.round}: the rule {self.node.rule} makes no pair of "
                f"{len(judged)} prompts ({reasons or 'no reason given'}). Sample more completions, "
                "or take a rule that keeps more."
            )
        report.check(self.node.max_dropped)
        if isinstance(rule, Filtered):
            # Win rates are within a prompt; what is asked here is how far the reward itself goes.
            numbers = [
                numbers_of(row, rule.by or ("win_rate" if row.scores is None else "score"))
                for row in judged
            ]
            about |= reliability(known_groups(judged, numbers, self.source))
        write_lines(
            context.output("pairs"), [p.model_dump(mode="json", exclude_none=True) for p in pairs]
        )
        return about
