"""A whole run of tasks: answers, scores, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align import registry
from align.data.records import content_id
from align.errors import RecipeError
from align.evaluation import Benchmark, Subject
from align.nearest import did_you_mean
from align.policies.base import Policy
from align.registry import is_path
from align.runs.manifest import file_digest
from align_eval.judged import NonEmpty
from align_eval.outputs import in_words
from align_eval.results import Result, write_result
from align_eval.tasks import Task, TaskItem, TaskScore, load_task, measure_task, questions_of


class Tasks(Benchmark):
    """Verifiable tasks: accuracy by a strict and by a flexible reading of the answer."""

    run: Literal["tasks"] = "tasks"
    """Which evaluation."""
    tasks: tuple[NonEmpty, ...] = Field(min_length=1)
    """Built-in tasks (sums, styles, gsm8k) or YAML files of one's own."""
    files: Mapping[str, NonEmpty] = {}
    """Task -> file with its questions, for tasks that read one, such as gsm8k."""
    n: int | None = Field(default=None, ge=1)
    """Questions of each task at most, the first ones; null takes all, and 256 of a world."""
    seed: int = Field(default=0, ge=0)
    """Seed of a world's questions and of the samples."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of questions whose answer may be missing for another reason than the model's own before
    there is no score."""

    def reads_files(self) -> Sequence[str]:
        """The tasks that are files, and the files with questions."""
        named = [name.rpartition(":")[0] if is_path(name) else name for name in self.tasks]
        tasks = [name for name in named if name.endswith((".yaml", ".yml", ".py"))]
        return [*tasks, *self.files.values()]

    def planned(self) -> list[str]:
        """What would be asked; reads every task and every question."""
        tasks = [load_task(name) for name in self.tasks]
        return [
            f"{task.name} v{task.version}: {len(questions)} questions, {in_words(task.sampling)}"
            for task, questions in zip(tasks, _asked(self, tasks), strict=True)
        ]

    def settings(self) -> Any:
        """The node, with the content of what it names."""
        tasks = [load_task(name) for name in self.tasks]
        named = [name for name in self.tasks if is_path(name)]
        named += [how.by for task in tasks for how in (task.strict, task.flexible)]
        code = {name: registry.find("task", name).code for name in named if is_path(name)}
        return self.model_dump(mode="json") | {
            "content": [hash_of(task) for task in tasks],
            **({"code": code} if code else {}),
        }

    def measure(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Asks every question once and reads the answers by both filters."""
        return run_tasks(self, subject.policy(), folder, model=subject.name)


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
    files = {name: Path(path) for name, path in node.files.items()}
    scores = [
        measure_task(task, policy, questions, seed=node.seed)
        for task, questions in zip(tasks, _asked(node, tasks), strict=True)
    ]
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
                    "hash": hash_of(task),
                    "sampling": task.sampling.model_dump(mode="json"),
                    **({"file": file_digest(files[task.name])} if task.name in files else {}),
                }
                for task in tasks
            },
        },
        n_cut=sum(score.n_cut for score in scores),
        notes=[f"Answers to {task.name}: {in_words(task.sampling)}." for task in tasks],
    )
    return write_result(folder, result, max_failed=node.max_failed)


def _asked(node: Tasks, tasks: Sequence[Task]) -> list[list[TaskItem]]:
    """The questions of each task.

    Raises:
        RecipeError: a file for none of the tasks, or a task without its file.
        DataError: a file is none of its kind.
    """
    if unused := set(node.files) - {task.name for task in tasks}:
        known = [task.name for task in tasks]
        near = did_you_mean(min(unused), known) or f"; the tasks are {', '.join(known)}"
        raise RecipeError(f"files: {', '.join(sorted(unused))} is none of the tasks{near}.")
    return [
        questions_of(
            task,
            Path(node.files[task.name]) if task.name in node.files else None,
            n=node.n,
            seed=node.seed,
        )
        for task in tasks
    ]


def hash_of(task: Task) -> str:
    """16 hex digits of a task's content."""
    return content_id(task.model_dump(mode="json", exclude=None if task.rows else {"rows"}))


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
