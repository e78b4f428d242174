"""Verifiable tasks: questions with known answers, as YAML with a version.

A task names its questions, how the model is asked, and two filters: the strict one wants the answer
in the form that was asked for, the flexible one finds it wherever it stands. Whoever changes a task
in a way that moves a number raises its version.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from align import registry
from align.data.messages import Message, prompt_id
from align.data.prompts import Prompt
from align.data.records import content_id
from align.errors import DataError, RecipeError
from align.estimates import Estimate, proportion
from align.judges.base import Answer, Asked, Bench, JudgeFailed, ScoreJudge
from align.judges.by import judge_class
from align.judges.rule import LAST_NUMBER, known_answer_judge
from align.node import Conflict, Node
from align.policies.base import Failed, Policy, Sampling
from align.registry import WORLD, is_path, no_such_world
from align.worlds import world
from align.worlds.base import World
from align_eval.row_files import read_rows
from align_eval.task_faults import faults_in_words

OF_A_WORLD = 256
# Failures that are the model's own: the answer is wrong. All others leave the question out.
OWN_FAILURES = ("unfinished", "empty")


class Filter(Node):
    """Finds the answer in a completion and compares it."""

    by: str = Field(min_length=1)
    """pattern: a regular expression; world, world_loosely: its own exact judge, with or without
    case and white space; or a reward of one's own as file.py:function, to which the known answer
    goes as `answer`: 1.0 is right."""
    pattern: str = LAST_NUMBER
    """Its group 1 where it has one, else the whole match; the last number."""


class Row(Node):
    """A question that stands in the task itself."""

    question: str = Field(min_length=1)
    """What is asked."""
    answer: str | None = None
    """The known answer."""


class Task(Node):
    """A task file."""

    name: str = Field(min_length=1)
    """What it is called in tables."""
    version: int = Field(ge=1)
    """Raised with every change that moves a number."""
    source: str = Field(min_length=1)
    """Where the questions come from: file, rows (given below), or a world."""
    rows: tuple[Row, ...] = ()
    """The questions themselves, for `source: rows`."""
    question: str | None = None
    """Field of the file that holds the question."""
    answer: str | None = None
    """Field of the file that holds the answer."""
    answer_pattern: str | None = None
    """Regular expression whose group 1 is the answer within that field; null takes it whole."""
    prompt: str = "{question}"
    """What the model reads; {question} stands for the question."""
    strict: Filter
    """The answer in the form that was asked for."""
    flexible: Filter
    """The answer wherever it stands."""
    sampling: Sampling
    """How the model answers."""

    def conflicts(self) -> Iterator[Conflict]:
        is_file = self.source == "file"
        is_world = self.source.startswith(WORLD)
        if not (is_file or is_world or self.source == "rows"):
            yield "source", "write file, rows, or a world such as world:sums"
        if (problem := no_such_world(self.source)) is not None:
            yield "source", problem
        if (self.source == "rows") != bool(self.rows):
            yield "rows", "is for `source: rows`, which needs it"
        for key in ("question", "answer"):
            if is_file == (getattr(self, key) is None):
                yield key, "is for `source: file`, which needs it"
        if "{question}" not in self.prompt:
            yield "prompt", "must hold {question}"
        for key in ("strict", "flexible"):
            by = getattr(self, key).by
            if by in ("world", "world_loosely"):
                if not is_world:
                    yield key, f"a {self.source} has no judge of its own; write `by: pattern`"
            elif by == "pattern" and any(row.answer is None for row in self.rows):
                yield key, "compares with the known answer; write `answer` in every row"
            elif by != "pattern" and not is_path(by):
                yield key, f"no filter {by!r}; write pattern, world, or file.py:function"


@dataclass(frozen=True)
class TaskItem:
    """One question of a task and, where there is one, its known answer."""

    text: str
    answer: str | None


@dataclass(frozen=True)
class TaskScore:
    """One model's answers to one task.

    Attributes:
        strict: share right by the strict filter, with Wilson's interval.
        flexible: share right by the flexible filter.
        n: questions; those of `strict.n` were answered.
        own_failures: answers that were wrong because there was no whole one, by reason.
        reasons: questions without an answer for another reason.
        outcomes: counts of the styles, in the world of styles.
        n_cut: answers that were cut off at the token limit and read as they stand.
    """

    name: str
    version: int
    strict: Estimate
    flexible: Estimate
    n: int
    own_failures: Mapping[str, int]
    reasons: Mapping[str, int]
    outcomes: Mapping[str, int]
    n_cut: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": self.version,
            "strict": self.strict.to_json(),
            "flexible": self.flexible.to_json(),
            "n": self.n,
            "own_failures": dict(self.own_failures),
            "reasons": dict(self.reasons),
            "n_cut": self.n_cut,
            **({"outcomes": dict(self.outcomes)} if self.outcomes else {}),
        }


def load_task(name: str) -> Task:
    """A built-in or installed task, a YAML file, or `file.py:object`.

    Raises:
        RecipeError: there is none of that name, or what is there is no task.
    """
    path: Any = Path(name)
    if is_path(name) or name in registry.names("task") or not path.is_file():
        try:
            path = registry.find("task", name).value
        except RecipeError as error:
            raise RecipeError(f"{error}; a YAML file of one's own will do too.") from error
    if isinstance(path, Task):
        return path
    if not isinstance(path, Path):
        raise RecipeError(f"The task {name!r} is a {type(path).__name__} and no align_eval Task.")
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Task.model_validate(written)
    except ValidationError as error:
        faults = faults_in_words(error, Task)
        raise RecipeError(f"{path}: {faults}. Mend the task file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML ({type(error).__name__}). Mend it.") from error


def questions_of(task: Task, file: Path | None, *, n: int | None, seed: int) -> list[TaskItem]:
    """The first `n` questions of a file, or held-out ones of a world.

    Raises:
        RecipeError: the task reads a file and none is given, or the other way round.
        DataError: a row has no answer that the pattern finds.
    """
    if (task.source == "file") == (file is None):
        what = "reads a file: give one" if file is None else "reads no file: take it out"
        raise RecipeError(f"files: the task {task.name} {what} under `files: {{{task.name}: ...}}`")
    if file is not None:
        return _from_file(task, file)[:n]
    if task.source == "rows":
        return [TaskItem(row.question, row.answer) for row in task.rows][:n]
    of = world(task.source)
    prompts = of.prompts("held_out", n or OF_A_WORLD, seed=seed)
    return [_of_prompt(of, prompt) for prompt in prompts]


def _of_prompt(of: World, prompt: Prompt) -> TaskItem:
    assert not isinstance(prompt.prompt, str), "worlds ask by messages"
    if prompt.images:
        raise RecipeError(
            f"source: world:{of.name} asks about pictures, and a task asks by text; name the world "
            "itself in evaluate.suite."
        )
    answer = of.question(prompt).answer if of.judged_by == "scores" else None
    return TaskItem(prompt.prompt[-1].content, answer)


def _from_file(task: Task, file: Path) -> list[TaskItem]:
    assert task.question is not None
    assert task.answer is not None
    questions: list[TaskItem] = []
    for number, row in enumerate(read_rows(file, needs=(task.question, task.answer)), start=1):
        answer = str(row[task.answer])
        if task.answer_pattern is not None:
            match = re.search(task.answer_pattern, answer)
            if match is None:
                raise DataError(
                    f"{file}:{number}: {task.answer} holds nothing that answer_pattern finds. Give "
                    f"the file that version {task.version} of {task.name} is written for."
                )
            answer = match[1]
        questions.append(TaskItem(str(row[task.question]), answer))
    return questions


@contextmanager
def judge_of(task: Task, how: Filter, questions: Sequence[TaskItem]) -> Iterator[ScoreJudge]:
    """1.0 for a right answer, 0.0 for a wrong one."""
    if how.by == "pattern":
        known = {q.text: q.answer for q in questions if q.answer is not None}
        yield known_answer_judge(known, how.pattern)
    elif is_path(how.by):
        made: Any = judge_class(how.by)
        if made.gives != "scores":
            raise RecipeError(f"{how.by} compares two completions; a task's filter scores one.")
        rows = {
            prompt_id(q.text): Asked("task", number, {"answer": q.answer})
            for number, q in enumerate(questions, start=1)
        }
        with made(by=how.by).open(Bench(Path(), "", rows.get)) as judge:
            yield judge
    else:
        yield world(task.source).checks(loosely=how.by == "world_loosely")


def _share(
    task: Task, how: Filter, questions: Sequence[TaskItem], answers: Sequence[Answer], n: int
) -> Estimate:
    """Share right among `n` answers, those of `answers` by the filter and all others wrong."""
    with judge_of(task, how, questions) as judge:
        scores = judge.score(answers)
    failed = [score for score in scores if isinstance(score, JudgeFailed)]
    if failed:
        raise DataError(
            f"task {task.name}: the filter {how.by} says of {len(failed)} of {len(scores)} answers "
            f"neither right nor wrong; the first: {failed[0].reason}: {failed[0].detail}. Mend it."
        )
    return proportion(sum(score == 1.0 for score in scores), n)


def measure_task(
    task: Task, policy: Policy, questions: Sequence[TaskItem], *, seed: int
) -> TaskScore:
    """Asks the policy once per question and reads its answers by both filters.

    Raises:
        DataError: a filter says neither right nor wrong.
    """
    rows = [
        Prompt(
            prompt=(Message(role="user", content=task.prompt.replace("{question}", q.text)),),
            group_id=content_id(q.text),
            source=f"task:{task.name}/{task.version}",
            row=number,
        )
        for number, q in enumerate(questions, start=1)
    ]
    own: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    answers: list[Answer] = []
    n_cut = 0
    drawn = policy.generate(rows, 1, task.sampling, seed)
    for question, (sample,) in zip(questions, drawn, strict=True):
        if isinstance(sample, Failed):
            (own if sample.reason in OWN_FAILURES else reasons)[sample.reason] += 1
            continue
        assert not isinstance(sample.completion, str)
        text = sample.completion[-1].content
        n_cut += not sample.finished
        answers.append(Answer(question.text, text, id=str(len(answers))))
    n = len(answers) + own.total()
    strict, flexible = (
        _share(task, how, questions, answers, n) for how in (task.strict, task.flexible)
    )
    return TaskScore(
        name=task.name,
        version=task.version,
        strict=strict,
        flexible=flexible,
        n=len(questions),
        own_failures=dict(sorted(own.items())),
        reasons=dict(sorted(reasons.items())),
        outcomes=_outcomes(task, answers),
        n_cut=n_cut,
    )


def _outcomes(task: Task, answers: Sequence[Answer]) -> dict[str, int]:
    if not task.source.startswith(WORLD):
        return {}
    of = world(task.source)
    named = [of.outcome(str(answer.prompt), answer.completion) for answer in answers]
    found = Counter(name for name in named if name is not None)
    return dict(sorted(found.items()))
