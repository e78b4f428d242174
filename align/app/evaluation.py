"""`align eval`: a model's evaluations, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState

from align.errors import DataError
from align.evaluation import EvaluationNode, Measurement, Subject, Weights
from align.loops.signals import StopSignal
from align.policies.base import Policy
from align.policies.engines import Loading, opened
from align.policies.loading import load_policy, load_tokenizer
from align.policies.openai_http import HttpPolicy
from align.policies.start import Start
from align.recipe import EvalRecipe, default_run, load_eval_recipe, resolved_yaml
from align.runs.folder import RunFolder
from align.runs.versions import versions
from align.servers.cached import cached_caller
from align.stages.evaluate import (
    benchmarks,
    folders_of,
    measurements,
    run_benchmarks,
    scores_of,
)
from align.stages.policies import policy_folder


def evaluate_recipe(path: Path, overrides: Sequence[str], run_path: Path | None) -> str:
    """Runs a recipe's evaluations; the same call again asks only what failed or is missing.

    Args:
        path: of the recipe.
        overrides: `key.path=value`.
        run_path: the run's folder; None takes outputs/<recipe>-<key>.

    Returns:
        The tables, for people.

    Raises:
        DataError: in one of them too much failed; the others are finished first.
        Interrupted: a signal ended it; every answer that came is kept.
    """
    recipe = load_eval_recipe(path, overrides)
    nodes = recipe.evaluate.nodes()
    run = RunFolder(run_path or default_run(path, recipe))
    run.claim(resolved_yaml(recipe))
    try:
        chosen = benchmarks(nodes)
        folders = folders_of(run.path, chosen)
        with StopSignal() as stop, ExitStack() as stack, stop.abandonable():
            subject = _Model(recipe, run.path, stack).subject()
            after = measurements(nodes, subject)
            results = run_benchmarks(chosen, folders, subject)
        scores = {name: value for result in results for name, value in scores_of(result).items()}
        flags = {r["evaluation"]: r["flag"] for r in results if r.get("flag") is not None}
        run.write_json(
            "metrics.json",
            {
                "before": {},
                "after": after,
                "scores": scores,
                **({"flags": flags} if flags else {}),
                "n": sum(result["n"] for result in results)
                + max((value["n"] for value in after.values()), default=0),
                "seed": recipe.evaluate.seed,
                "versions": versions(),
            },
        )
        run.ledger.append("evaluations", None, {"scores": scores})
        tables = [(folder / "table.md").read_text(encoding="utf-8") for folder in folders]
        return "\n".join([*tables, *([_listed(after)] if after else [])])
    finally:
        run.release()


def check_evaluations(nodes: Sequence[EvaluationNode]) -> str:
    """The dry run: what is measured, of whom, and whether its files are there and hold enough.

    Raises:
        DataError: a file is not there, or lacks what the evaluation reads.
        RecipeError: what it names cannot stand together.
    """
    named = [name for node in nodes for name in node.reads_files()]
    missing = [name for name in named if not Path(name).expanduser().exists()]
    if missing:
        raise DataError(
            f"evaluate.suite: these files are not there: {', '.join(missing)}. Write where they "
            "lie, or fetch them first."
        )
    return "\n".join(line for node in nodes for line in _plan(node))


def _plan(node: EvaluationNode) -> list[str]:
    if isinstance(node, Measurement):
        return [f"{node.label}: measured on the model itself"]
    writes = "its outputs are generated" if node.asks_policy() else "its outputs are read"
    files = ", ".join(node.reads_files()) or "none"
    return [f"{node.run}: {writes}; files: {files}", *(f"  {line}" for line in node.planned())]


def _listed(measured: dict[str, Any]) -> str:
    rows = ["| measure | value | low | high | n |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| {name} | "
        + " | ".join(_cell(found[key]) for key in ("value", "low", "high", "n"))
        + " |"
        for name, found in measured.items()
    ]
    return "\n".join(rows) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class _Model:
    """The recipe's model, loaded by the first evaluation that asks for it."""

    def __init__(self, recipe: EvalRecipe, run: Path, stack: ExitStack) -> None:
        self._recipe = recipe
        self._run = run
        self._stack = stack
        self._policy: Policy | None = None
        self._weights: Weights | None = None

    def subject(self) -> Subject:
        """What the evaluations are given."""
        recipe = self._recipe
        return Subject(
            name=recipe.name or recipe.model.model_name_or_path,
            policy=self._written,
            weights=self._loaded if recipe.server is None else None,
            held_out=(),
            n=recipe.evaluate.n,
            seed=recipe.evaluate.seed,
        )

    def _written(self) -> Policy:
        if self._policy is None:
            self._policy = self._open()
        return self._policy

    def _open(self) -> Policy:
        recipe = self._recipe
        if recipe.server is not None:
            return HttpPolicy(self._stack.enter_context(cached_caller(recipe.server, self._run)))
        folder = policy_folder(recipe.model)
        loading = Loading(
            Path(folder),
            lambda: nullcontext(self._loaded().model),
            load_tokenizer(recipe.model, folder),
            recipe.batch_rows,
        )
        return self._stack.enter_context(opened(recipe.engine, loading))

    def _loaded(self) -> Weights:
        if self._weights is None:
            section = self._recipe.model
            folder = policy_folder(section)
            model: Any = load_policy(section, folder)
            if getattr(model, "hf_device_map", None) is None:
                model = model.to(PartialState().device)
            tokenizer = load_tokenizer(section, folder)
            self._weights = Weights(model, tokenizer, Start.in_memory(model))
        return self._weights
