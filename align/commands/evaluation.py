# pyright: basic
"""Evaluations of a model: `align eval`, and what a loop's evaluate stage measures besides."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.errors import DataError
from align.loops.signals import StopSignal
from align.recipe import EvalRecipe, load_eval_recipe, resolved_yaml
from align.recipe.evaluations import AnyEvaluation, ArenaHard
from align.runs import RunFolder

logger = logging.getLogger("align")


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
    from align.commands import default_run
    from align.trainers.settings import versions

    recipe = load_eval_recipe(path, overrides)
    run = RunFolder(run_path or default_run(path, recipe))
    run.claim(resolved_yaml(recipe))
    try:
        with StopSignal() as stop, ExitStack() as stack, stop.abandonable():
            model = recipe.name or recipe.model.model_name_or_path
            folders = folders_of(run.path, recipe.evaluations)
            results = run_all(
                recipe.evaluations, folders, _Policies(recipe, run.path, stack), model
            )
        after = {name: value for result in results for name, value in scores_of(result).items()}
        run.write_json(
            "metrics.json",
            {
                "before": {},
                "after": {},
                "scores": after,
                "n": sum(result["n"] for result in results),
                "seed": recipe.evaluations[0].seed,
                "versions": versions(),
            },
        )
        run.ledger.append("evaluations", None, {"scores": after})
        return "\n".join((folder / "table.md").read_text(encoding="utf-8") for folder in folders)
    finally:
        run.release()


def check_evaluations(recipe: EvalRecipe) -> str:
    """The dry run: what is measured, whether its files are there, and who must answer."""
    from eval.run import needs_policy

    lines: list[str] = []
    missing: list[str] = []
    for node in recipe.evaluations:
        named = node.model_dump(mode="json", exclude={"annotator", "sampling", "how", "limits"})
        files = [named[key] for key in _FILES if named.get(key)]
        files = [name for value in files for name in ([value] if isinstance(value, str) else value)]
        missing += [name for name in files if not Path(name).expanduser().exists()]
        writes = "its outputs are generated" if needs_policy(node) else "its outputs are read"
        lines.append(f"{node.run}: {writes}; files: {', '.join(files) or 'none'}")
    if missing:
        raise DataError(
            f"evaluations: these files are not there: {', '.join(missing)}. Write where they lie, "
            "or fetch them first."
        )
    return "\n".join(lines)


_FILES = (
    *("reference_outputs", "outputs", "gamed", "difficulty", "questions", "baseline_answers"),
    *("answers", "against"),
)


def folders_of(run: Path, nodes: Sequence[AnyEvaluation]) -> list[Path]:
    """One folder per evaluation, in their order."""
    return [run / f"evaluation-{i}-{node.run}" for i, node in enumerate(nodes, start=1)]


def run_all(
    nodes: Sequence[AnyEvaluation],
    folders: Sequence[Path],
    policy: Callable[[], Any],
    model: str,
) -> list[dict[str, Any]]:
    """What each evaluation's results.json holds.

    Raises:
        DataError: too much failed in at least one; raised after all have been run.
    """
    from eval.run import run_evaluation

    results: list[dict[str, Any]] = []
    faults: list[str] = []
    for node, folder in zip(nodes, folders, strict=True):
        try:
            found = run_evaluation(
                node, folder, policy=policy, model=model, count_tokens=_counter(node)
            )
        except DataError as error:
            faults.append(str(error))
            continue
        results.append(found)
        logger.info("%s: %s", node.run, json.dumps(scores_of(found)))
    if faults:
        raise DataError(" ".join(faults))
    return results


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """`evaluation/score` -> number, a path of names where scores lie within scores."""
    return dict(_numbers(result["evaluation"], result["scores"]))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _counter(node: AnyEvaluation) -> Callable[[str], int] | None:
    if not isinstance(node, ArenaHard) or node.tokenizer is None:
        return None
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(node.tokenizer)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


class _Policies:
    """The recipe's model, loaded by the first evaluation that asks for it."""

    def __init__(self, recipe: EvalRecipe, run: Path, stack: ExitStack) -> None:
        self._recipe = recipe
        self._run = run
        self._stack = stack
        self._policy: Any = None

    def __call__(self) -> Any:
        if self._policy is None:
            self._policy = self._load()
        return self._policy

    def _load(self) -> Any:
        recipe = self._recipe
        if recipe.server is not None:
            from align.commands.engines import cached_caller
            from align.policies.openai_http import HttpPolicy

            return HttpPolicy(self._stack.enter_context(cached_caller(recipe.server, self._run)))
        from accelerate import PartialState

        from align.commands import load_tokenizer, policy_folder

        folder = policy_folder(recipe.model)
        if recipe.engine == "vllm":
            from align.policies.vllm_engine import VLLMPolicy

            return VLLMPolicy(Path(folder))
        from align.policies.in_process import InProcessPolicy
        from align.trainers.run import load_policy

        model: Any = load_policy(recipe.model, folder)
        if getattr(model, "hf_device_map", None) is None:
            model = model.to(PartialState().device)
        tokenizer = load_tokenizer(recipe.model, folder)
        return InProcessPolicy(model, tokenizer, rows=recipe.batch_rows)
