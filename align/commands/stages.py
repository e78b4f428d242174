# pyright: basic
"""The stages that a recipe can list, as the loop's engine runs them.

generate   policy            -> completions
judge      completions       -> judged
select     judged            -> pairs
train      pairs, policy     -> policy (and anchor, where it is an average)
evaluate   policy            -> metrics

Those of the pipelines stand in `align.commands.pipelines`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.commands.artefacts import content_digest, read_lines, write_lines
from align.commands.judging import ask_for, build_judge, judge_prompts
from align.commands.launching import launch_config
from align.commands.policies import borrowed_policy, load_round_policy
from align.commands.prompts import PromptSource
from align.commands.training import RoundTraining
from align.errors import DataError
from align.loops.stage import Stage, StageContext
from align.policies.base import Failed, Sampling
from align.recipe import DataRecipe, Recipe
from align.recipe.pipelines.expert_correction import OnPolicyAlignment
from align.recipe.stages import Ask, EvaluateRound, Generate, Judge, Select, TrainRound
from align.records import Completion, JudgedPrompt, PreferencePair

logger = logging.getLogger("align")


@dataclass(frozen=True)
class Workshop:
    """What all stages of a loop work with.

    Attributes:
        recipe: the loop's.
        start: folder or hub id of the policy that the loop begins with.
        tokenizer: of all its policies.
    """

    recipe: Recipe | DataRecipe
    start: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def loop_recipe(self) -> Recipe:
        """Of a loop, which trains and measures; a recipe of a data set does neither."""
        assert isinstance(self.recipe, Recipe), "data recipes refuse train and evaluate stages"
        return self.recipe

    @property
    def model_settings(self) -> dict[str, Any]:
        """How weights are loaded, which moves numbers."""
        return self.recipe.model.model_dump(mode="json")


def stages_of(workshop: Workshop) -> list[Stage]:
    """The recipe's `each_round`, ready to run."""
    nodes = workshop.recipe.each_round
    chosen = next((node for node in nodes if isinstance(node, Select)), None)
    stages: list[Stage] = []
    for node in nodes:
        match node:
            case Generate():
                stages.append(GenerateStage(workshop, node))
            case Judge():
                stages.append(JudgeStage(workshop, node, chosen))
            case Select():
                stages.append(SelectStage(node))
            case TrainRound():
                stages.append(TrainStage(workshop, RoundTraining(workshop.loop_recipe), node))
            case EvaluateRound():
                stages.append(EvaluateStage(workshop))
            case OnPolicyAlignment():
                from align.commands.alignment import AlignmentStage

                stages.append(AlignmentStage(workshop, node))
            case _:
                from align.commands.pipelines import pipeline_stage

                stages.append(pipeline_stage(workshop, node))
    return stages


@dataclass
class GenerateStage:
    """The policy answers the round's prompts."""

    workshop: Workshop
    node: Generate
    name: str = field(default="generate", init=False)
    version: int = field(default=1, init=False)
    writes: tuple[str, ...] = field(default=("completions",), init=False)

    def __post_init__(self) -> None:
        recipe = self.workshop.recipe
        assert recipe.prompts is not None
        self.prompts = PromptSource(recipe.prompts, recipe.data)

    @property
    def reads(self) -> tuple[str, ...]:
        """The policy, unless another one behind a server answers."""
        return ("policy",) if self.node.server is None else ()

    def settings(self) -> Mapping[str, Any]:
        """The node, the prompts, and how the policy's weights are loaded."""
        without = {"run", "batch_rows", "server"}
        node = self.node.model_dump(mode="json", exclude=without)
        server = self.node.server
        if server is not None:
            node["server"] = [server.base_url, server.model, server.revision, dict(server.extra)]
        return node | {"prompts": self.prompts.identity, "model": self.workshop.model_settings}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one line per prompt."""
        node = self.node
        prompts = self.prompts.of_round(context.round)
        sampling = Sampling(
            max_new_tokens=node.max_new_tokens,
            temperature=node.temperature,
            top_p=node.top_p,
            top_k=node.top_k,
            stop=node.stop,
        )
        with self._policy(context) as policy:
            answers = policy.generate(prompts, node.samples, sampling, context.seed)
            sampler = policy.identity
        failures = Counter(a.reason for of in answers for a in of if isinstance(a, Failed))
        written = sum(isinstance(a, Completion) for of in answers for a in of)
        if not written:
            raise DataError(
                f"Round {context.round}: none of {len(prompts) * node.samples} completions can be "
                f"used ({_counted(failures)}). Raise max_new_tokens in the generate stage, or look "
                "at the prompts."
            )
        lines = [
            {
                **prompt.model_dump(mode="json"),
                "sampler": sampler,
                "completions": [_text(a) for a in of if isinstance(a, Completion)],
                "failures": [
                    f"sample {a.sample}: {a.reason} ({a.detail})"
                    for a in of
                    if isinstance(a, Failed)
                ],
            }
            for prompt, of in zip(prompts, answers, strict=True)
        ]
        write_lines(context.output("completions"), lines)
        return {
            **self.prompts.counts(),
            "prompts": len(prompts),
            "completions": written,
            "failed": dict(sorted(failures.items())),
            "policy": sampler,
        }

    def _policy(self, context: StageContext) -> Any:
        from align.commands.engines import generating_policy

        return generating_policy(self.workshop, self.node, context)


@dataclass
class JudgeStage:
    """A judge scores the completions or compares them."""

    workshop: Workshop
    node: Judge
    select: Select | None
    asked: Ask = field(init=False)
    name: str = field(default="judge", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("completions",), init=False)
    writes: tuple[str, ...] = field(default=("judged",), init=False)

    def __post_init__(self) -> None:
        prompts = self.workshop.recipe.prompts
        assert prompts is not None
        self.asked = ask_for(self.node, self.select, prompts.source)
        if self.node.by in ("world", "answers"):
            # Soon built, and better refused now than after the first completions.
            with build_judge(self.node, self.workshop, Path()):
                pass

    def settings(self) -> Mapping[str, Any]:
        """The node, with the content of what it names; and which comparisons are asked.

        Where the judge is served has no part: its name and revision say who it is.
        """
        node = self.node.model_dump(mode="json", exclude={"run", "max_failed", "server"})
        server = self.node.server
        if server is not None:
            node["server"] = [server.model, server.revision, dict(server.extra)]
        if self.node.path is not None:
            node["content"] = content_digest(self.node.path)
        drawn = self.select.selection() if self.select is not None else None
        return node | {"ask": self.asked, "rule": drawn if self.asked == "random_pair" else None}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one `JudgedPrompt` per line."""
        lines = list(read_lines(context.input("completions")))
        with build_judge(self.node, self.workshop, context.loop) as judge:
            judged = judge_prompts(judge, self.asked, self.node, self.select, lines, context.round)
        # The failures of the generate stage stand in front.
        unjudged = [
            failure
            for row, line in zip(judged, lines, strict=True)
            for failure in row.failures[len(line["failures"]) :]
        ]
        asked, lost = sum(row.calls for row in judged), len(unjudged)
        if lost > self.node.max_failed * asked:
            raise DataError(
                f"Round {context.round}: {lost} of {asked} judgements failed, more than "
                f"max_failed {self.node.max_failed:g}; the first: {unjudged[0]}. Answers that came "
                "are kept, so running the same command again asks only for the others."
            )
        write_lines(context.output("judged"), [row.model_dump(mode="json") for row in judged])
        return {
            "prompts": len(judged),
            "calls": asked,
            "failed": lost,
            "judge": judged[0].judge if judged else None,
        }


@dataclass
class SelectStage:
    """Pairs are made of the judged completions."""

    node: Select
    name: str = field(default="select", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("judged",), init=False)
    writes: tuple[str, ...] = field(default=("pairs",), init=False)

    def settings(self) -> Mapping[str, Any]:
        """The rule."""
        return self.node.selection()

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one `PreferencePair` per line, and the count of the others."""
        from pydantic import TypeAdapter

        from data_pipelines.select import SelectRule, select

        rule: Any = TypeAdapter(SelectRule).validate_python(self.node.selection())
        judged = [JudgedPrompt.model_validate(row) for row in read_lines(context.input("judged"))]
        pairs, report = select(judged, rule)
        counts = report.to_json()
        about = {key: counts[key] for key in ("read", "kept", "dropped")}
        if not pairs:
            raise DataError(
                f"Round {context.round}: the rule {self.node.rule} makes no pair of "
                f"{len(judged)} prompts ({_counted(report.dropped)}). Sample more completions, or "
                "take a rule that keeps more."
            )
        report.check(self.node.max_dropped)
        write_lines(
            context.output("pairs"), [p.model_dump(mode="json", exclude_none=True) for p in pairs]
        )
        return about


@dataclass
class TrainStage:
    """The policy learns from the round's pairs."""

    workshop: Workshop
    training: RoundTraining
    node: TrainRound
    name: str = field(default="train", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.node.launch is not None:
            launch_config(self.node.launch)

    @property
    def reads(self) -> tuple[str, ...]:
        """Pairs, the policy, and the policies behind the objective's roles."""
        return ("pairs", "policy", *self.training.reads)

    @property
    def writes(self) -> tuple[str, ...]:
        """The next policy; the average where the anchor is one."""
        return ("policy", "anchor") if self.training.decay is not None else ("policy",)

    def settings(self) -> Mapping[str, Any]:
        """Objective, roles, training, and how rows become tokens."""
        launch = self.node.launch
        return self.training.settings() | {"launch": launch and content_digest(launch)}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Trains on from the newest policy."""
        pairs = [trained_columns(row) for row in read_lines(context.input("pairs"))]
        if self.node.launch is not None:
            return self.training.launched(context, self.workshop, self.node.launch)
        return self.training.in_process(context, self.workshop, pairs)


@dataclass
class EvaluateStage:
    """The policy is measured."""

    workshop: Workshop
    name: str = field(default="evaluate", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("policy",), init=False)
    writes: tuple[str, ...] = field(default=("metrics",), init=False)

    def settings(self) -> Mapping[str, Any]:
        """What is measured, and how weights are loaded."""
        recipe = self.workshop.loop_recipe
        found = recipe.evaluate.model_dump(mode="json") | {"model": self.workshop.model_settings}
        if recipe.data.eval_pairs is not None:
            found["rows"] = content_digest(recipe.data.eval_pairs)
        if recipe.evaluations:
            # How hard a server is asked moves no number.
            found["evaluations"] = [
                node.model_dump(mode="json", exclude={"limits"}) for node in recipe.evaluations
            ]
        return found

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes the measurements of the suite."""
        with borrowed_policy(context, self.workshop.recipe, self.workshop.start) as policy:
            found = measured(self.workshop, policy)
            scores = self._evaluations(context, policy)
        text = json.dumps(found, indent=1, sort_keys=True, allow_nan=False)
        (context.output("metrics") / "metrics.json").write_text(text + "\n")
        return {name: value["value"] for name, value in found.items()} | scores

    def _evaluations(self, context: StageContext, model: Any) -> dict[str, float]:
        """The recipe's evaluations on this round's policy; their answers survive a kill."""
        from align.commands.evaluation import folders_of, run_all, scores_of
        from align.policies.in_process import InProcessPolicy

        nodes = self.workshop.loop_recipe.evaluations
        folders = folders_of(context.scratch, nodes)
        policy = InProcessPolicy(model, self.workshop.tokenizer)
        results = run_all(nodes, folders, lambda: policy, f"round {context.round}")
        for folder in folders:
            kept = context.output("metrics") / folder.name
            kept.mkdir()
            for name in ("results.json", "table.md"):
                shutil.copy2(folder / name, kept / name)
        return {name: score for result in results for name, score in scores_of(result).items()}


def trained_columns(row: Mapping[str, Any]) -> PreferencePair:
    """A row without the provenance that a pipeline gave it."""
    known = PreferencePair.model_fields
    return PreferencePair.model_validate({k: v for k, v in row.items() if k in known})


def measured(workshop: Workshop, policy: Any | None) -> dict[str, Any]:
    """The recipe's suite on a policy, against the loop's start; None measures the start itself."""
    from align.commands import held_out_rows, measure

    recipe = workshop.loop_recipe
    start = load_round_policy(recipe, Path(workshop.start), workshop.start, trainable=False)
    rows = held_out_rows(recipe, workshop.tokenizer)
    return measure(recipe, policy or start, start, workshop.tokenizer, rows)


def _text(completion: Completion) -> str:
    written = completion.completion
    return written if isinstance(written, str) else written[-1].content


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items())) or "no reason given"
