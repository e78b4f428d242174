"""Verifiable tasks: questions with known answers, as YAML with a version.

A task names its questions, how the model is asked, and two filters: the strict one wants the answer
in the form that was asked for, the flexible one finds it wherever it stands. Whoever changes a task
in a way that moves a number raises its version.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from align.errors import DataError, RecipeError
from align.judges.base import Answer
from align.judges.rule import LAST_NUMBER, RuleJudge, known_answer_judge, sums_judge
from align.policies.base import Failed, Policy, Sampling
from align.recipe.base import Conflict, Section
from align.records import Message, Prompt, content_id
from eval.metrics import Estimate, proportion
from eval.row_files import read_rows

FOLDER = Path(__file__).parent / "task_files"
OF_A_WORLD = 256
# Failures that are the model's own: the answer is wrong. All others leave the question out.
OWN_FAILURES = ("unfinished", "empty")


class Filter(Section):
    """Finds the answer in a completion and compares it."""

    by: Literal["pattern", "world", "world_loosely"]
    """pattern: a regular expression; world: its own exact judge, with or without case and white
    space."""
    pattern: str = LAST_NUMBER
    """Its group 1 where it has one, else the whole match; the last number."""


class Task(Section):
    """A task file."""

    name: str = Field(min_length=1)
    """What it is called in tables."""
    version: int = Field(ge=1)
    """Raised with every change that moves a number."""
    source: Literal["file", "world:sums", "world:styles"]
    """Where the questions come from."""
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
        for key in ("question", "answer"):
            if is_file == (getattr(self, key) is None):
                yield key, "is for `source: file`, which needs it"
        if "{question}" not in self.prompt:
            yield "prompt", "must hold {question}"
        for key in ("strict", "flexible"):
            if is_file and getattr(self, key).by != "pattern":
                yield key, "a file has no judge of its own; write `by: pattern`"


@dataclass(frozen=True)
class Question:
    """One question and, where there is one, its known answer."""

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
    """

    name: str
    version: int
    strict: Estimate
    flexible: Estimate
    n: int
    own_failures: Mapping[str, int]
    reasons: Mapping[str, int]
    outcomes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": self.version,
            "strict": self.strict.to_json(),
            "flexible": self.flexible.to_json(),
            "n": self.n,
            "own_failures": dict(self.own_failures),
            "reasons": dict(self.reasons),
            **({"outcomes": dict(self.outcomes)} if self.outcomes else {}),
        }


def load_task(name: str) -> Task:
    """A built-in task by its name, or a YAML file.

    Raises:
        RecipeError: there is none of that name, or the file is no task.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise RecipeError(f"There is no task {name!r}: write one of {known}, or a YAML file.")
    try:
        return Task.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{path}: {where}: {first['msg']}. Mend the task file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML ({type(error).__name__}). Mend it.") from error


def questions_of(task: Task, file: Path | None, *, n: int | None, seed: int) -> list[Question]:
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
    if task.source == "world:sums":
        from align.worlds.sums import Sums, prompt_of

        problems = Sums().problems("held_out", n or OF_A_WORLD, seed=seed)
        return [Question(prompt_of(operands), str(sum(operands))) for operands in problems]
    from align.worlds import style_game
    from align.worlds.styles import Styles

    topics = Styles().topics("held_out", seed=seed)[: n or OF_A_WORLD]
    return [Question(style_game.prompt_of(topic), None) for topic in topics]


def _from_file(task: Task, file: Path) -> list[Question]:
    assert task.question is not None
    assert task.answer is not None
    questions: list[Question] = []
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
        questions.append(Question(str(row[task.question]), answer))
    return questions


def judge_of(task: Task, how: Filter, questions: Sequence[Question]) -> RuleJudge:
    """1.0 for a right answer, 0.0 for a wrong one."""
    if how.by == "pattern":
        known = {q.text: q.answer for q in questions if q.answer is not None}
        return known_answer_judge(known, how.pattern)
    if task.source == "world:sums":
        return sums_judge()
    from align.worlds import style_game

    def is_remark(question: str, completion: str) -> float:
        if how.by == "world":
            return float(style_game.outcome_of(question, completion) != style_game.MALFORMED)
        match = re.fullmatch(r"what of ([a-z]+) ([a-z]+)\?", question)
        assert match is not None
        there = {_loosely(text) for text in style_game.answers_of((match[1], match[2]))}
        return float(_loosely(completion) in there)

    return RuleJudge(f"styles-{how.by}", is_remark)


def _loosely(text: str) -> str:
    return " ".join(text.split()).casefold()


def measure_task(
    task: Task, policy: Policy, questions: Sequence[Question], *, seed: int
) -> TaskScore:
    """Asks the policy once per question and reads its answers by both filters."""
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
    drawn = policy.generate(rows, 1, task.sampling, seed)
    for question, (sample,) in zip(questions, drawn, strict=True):
        if isinstance(sample, Failed):
            (own if sample.reason in OWN_FAILURES else reasons)[sample.reason] += 1
            continue
        assert not isinstance(sample.completion, str)
        text = sample.completion[-1].content
        answers.append(Answer(question.text, text, id=str(len(answers))))
    n = len(answers) + own.total()
    strict, flexible = (
        proportion(sum(score == 1.0 for score in judge_of(task, how, questions).score(answers)), n)
        for how in (task.strict, task.flexible)
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
    )


def _outcomes(task: Task, answers: Sequence[Answer]) -> dict[str, int]:
    if task.source != "world:styles":
        return {}
    from align.worlds.style_game import outcome_of

    found = Counter(outcome_of(str(answer.prompt), answer.completion) for answer in answers)
    return dict(sorted(found.items()))
