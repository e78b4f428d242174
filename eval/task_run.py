"""A whole run of tasks: answers, scores, files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from align.errors import RecipeError
from align.manifest import file_digest
from align.policies.base import Policy
from align.recipe.evaluations import Tasks
from align.records import content_id
from eval.results import Result, write_result
from eval.tasks import TaskScore, load_task, measure_task, questions_of


def run_tasks(node: Tasks, policy: Policy, folder: Path, *, model: str) -> dict[str, Any]:
    """Measures all tasks of a node, and writes results.json and table.md to `folder`.

    Returns:
        What results.json holds.

    Raises:
        RecipeError: an unknown task, or a file for none of them.
        DataError: more than max_failed of the questions have no answer for a reason that is not
            the model's own.
    """
    tasks = [load_task(name) for name in node.tasks]
    if unused := set(node.files) - {task.name for task in tasks}:
        raise RecipeError(f"files: {', '.join(sorted(unused))} is none of the tasks; take it out.")
    files = {name: Path(path) for name, path in node.files.items()}
    asked = {
        task.name: questions_of(task, files.get(task.name), n=node.n, seed=node.seed)
        for task in tasks
    }
    scores = [measure_task(task, policy, asked[task.name], seed=node.seed) for task in tasks]
    n = sum(score.n for score in scores)
    reasons = sum((Counter(score.reasons) for score in scores), Counter[str]())
    result = Result(
        name="tasks",
        scores={score.name: score.to_json() for score in scores},
        table=[_table_row(model, score) for score in scores],
        n=n,
        n_judged=n - reasons.total(),
        n_failed=reasons.total(),
        reasons=dict(sorted(reasons.items())),
        provenance={
            "model": model,
            "policy": policy.identity,
            "seed": node.seed,
            "tasks": {
                task.name: {
                    "version": task.version,
                    "hash": content_id(task.model_dump(mode="json")),
                    "sampling": task.sampling.model_dump(mode="json"),
                    **({"file": file_digest(files[task.name])} if task.name in files else {}),
                }
                for task in tasks
            },
        },
    )
    return write_result(folder, result, max_failed=node.max_failed)


def _table_row(model: str, score: TaskScore) -> dict[str, Any]:
    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return {
        "task": f"{score.name} v{score.version}",
        "model": model,
        "strict %": percent(score.strict.value),
        "low": percent(score.strict.low),
        "high": percent(score.strict.high),
        "flexible %": percent(score.flexible.value),
        "n": score.strict.n,
    }
