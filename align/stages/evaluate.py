"""The policy is measured: policy -> metrics."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from align.errors import DataError
from align.evaluation import Benchmark, EvaluationNode, Measurement, Subject, Weights
from align.loops.stage import StageContext, StageNode
from align.node import own_code
from align.policies.in_process import InProcessPolicy
from align.policies.start import Start
from align.recipe import Recipe
from align.reference import content_digest
from align.stages.pairs import held_out_rows
from align.stages.policies import borrowed_policy, start_beside
from align.stages.workshop import Workshop
from align.tokens.tokenized_pair import TokenizedPair

logger = logging.getLogger("align")


class EvaluateRound(StageNode):
    """The policy is measured, as the `evaluate` section says."""

    run: Literal["evaluate"] = "evaluate"
    """Which stage."""
    trains: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = False

    def stage(self, workshop: Workshop) -> EvaluateStage:
        """The stage."""
        return EvaluateStage(workshop)


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
        nodes = recipe.evaluate.nodes()
        found = recipe.evaluate.model_dump(mode="json") | {"model": self.workshop.model_settings}
        found["suite"] = [node.settings() for node in nodes]
        if code := own_code(nodes):
            found["code"] = code
        if recipe.data.eval_pairs is not None:
            found["rows"] = content_digest(recipe.data.eval_pairs)
        return found

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes the measurements of the suite, and what its benchmarks left."""
        with borrowed_policy(context, self.workshop.recipe, self.workshop.start) as policy:
            found = measured(self.workshop, policy)
            scores = self._benchmarks(context, policy)
        text = json.dumps(found, indent=1, sort_keys=True, allow_nan=False)
        (context.output("metrics") / "metrics.json").write_text(text + "\n")
        return {name: value["value"] for name, value in found.items()} | scores

    def _benchmarks(self, context: StageContext, model: Any) -> dict[str, float]:
        """The suite's benchmarks on this round's policy; their answers survive a kill."""
        recipe = self.workshop.loop_recipe
        nodes = benchmarks(recipe.evaluate.nodes())
        start = start_of(self.workshop, model)
        subject = subject_of(
            recipe, model, start, self.workshop.tokenizer, (), f"round {context.round}"
        )
        folders = folders_of(context.scratch, nodes)
        results = run_benchmarks(nodes, folders, subject)
        for folder in folders:
            kept = context.output("metrics") / folder.name
            kept.mkdir()
            for name in ("results.json", "table.md"):
                shutil.copy2(folder / name, kept / name)
        return {name: score for result in results for name, score in scores_of(result).items()}


def measured(workshop: Workshop, policy: Any | None) -> dict[str, Any]:
    """The recipe's suite on a policy, against the loop's start; None measures the start itself."""
    recipe = workshop.loop_recipe
    rows = held_out_rows(recipe, workshop.tokenizer)
    start = start_of(workshop, policy)
    found = start.model if policy is None else policy
    return measure(recipe, found, start, workshop.tokenizer, rows)


def start_of(workshop: Workshop, policy: Any | None) -> Start:
    """The loop's start; where the policy is an adapter on it, it needs no memory of its own."""
    recipe = workshop.loop_recipe
    identity = workshop.start_identity if recipe.evaluate.needs_pairs else None
    return start_beside(recipe, workshop.start, identity, policy)


def measure(
    recipe: Recipe,
    policy: Any,
    start: Start,
    tokenizer: Any,
    held_out: Sequence[TokenizedPair],
) -> dict[str, Any]:
    """The suite's measurements of one policy: `<measurement>/<metric>` -> value, low, high, n."""
    subject = subject_of(recipe, policy, start, tokenizer, held_out, "")
    return measurements(recipe.evaluate.nodes(), subject)


def measurements(nodes: Sequence[EvaluationNode], subject: Subject) -> dict[str, Any]:
    """`<measurement>/<metric>` -> value, low, high, n; strict JSON."""
    return {
        f"{node.label}/{metric}": estimate.to_json()
        for node in nodes
        if isinstance(node, Measurement)
        for metric, estimate in node.estimates(subject).items()
    }


def subject_of(
    recipe: Recipe,
    policy: Any,
    start: Start,
    tokenizer: Any,
    held_out: Sequence[TokenizedPair],
    name: str,
) -> Subject:
    """A model in memory, to be measured as the recipe's `evaluate` section says."""
    return Subject(
        name=name,
        policy=lambda: InProcessPolicy(policy, tokenizer),
        weights=lambda: Weights(policy, tokenizer, start),
        held_out=held_out,
        n=recipe.evaluate.n,
        seed=recipe.evaluate.seed,
        pairs_at_once=recipe.train.per_device_eval_batch_size,
        token_budget=recipe.train.token_budget,
    )


def benchmarks(nodes: Sequence[EvaluationNode]) -> list[Benchmark]:
    """The entries with files of their own."""
    return [node for node in nodes if isinstance(node, Benchmark)]


def folders_of(run: Path, nodes: Sequence[EvaluationNode]) -> list[Path]:
    """One folder per evaluation, in their order."""
    return [run / f"evaluation-{i}-{node.run}" for i, node in enumerate(nodes, start=1)]


def run_benchmarks(
    nodes: Sequence[Benchmark], folders: Sequence[Path], subject: Subject
) -> list[dict[str, Any]]:
    """What each benchmark's results.json holds.

    Raises:
        DataError: too much failed in at least one; raised after all have been run.
    """
    results: list[dict[str, Any]] = []
    faults: list[str] = []
    for node, folder in zip(nodes, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = node.measure(subject, folder)
        except DataError as error:
            faults.append(str(error))
            continue
        results.append(found)
        logger.info("%s", said_of(found))
    if faults:
        raise DataError(" ".join(faults))
    return results


def said_of(result: Mapping[str, Any]) -> str:
    """A finished benchmark in one line: its numbers, and what a reader must be told."""
    scores = {name.partition("/")[2]: value for name, value in scores_of(result).items()}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) or "no score"
    flag = f" ({result['flag']})" if result.get("flag") else ""
    return f"{result['evaluation']}: {numbers}{flag}"


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """`evaluation/score` -> number, a path of names where scores lie within scores."""
    return dict(_numbers(result["evaluation"], result["scores"]))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
