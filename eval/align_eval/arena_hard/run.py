"""A whole Arena-Hard run: answers, judgments, scores, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import AutoTokenizer

from align.errors import DataError, RecipeError
from align.servers.caller import CachedCaller
from align_eval.arena_hard.files import (
    BENCHMARKS,
    ArenaQuestion,
    ModelAnswer,
    answer_rows,
    read_answers,
    read_questions,
    write_answers,
)
from align_eval.arena_hard.judging import PARSER, TEMPLATE, Judged, check_baselines, judge_model
from align_eval.arena_hard.scoring import battles_of, leaderboard, places_of, style_controlled
from align_eval.arena_hard.style import style_counts
from align_eval.judged import JudgedBenchmark, NonEmpty
from align_eval.order import order_effect
from align_eval.outputs import Outputs
from align_eval.results import Result, inputs_of, judge_of, write_result
from align_eval.row_files import write_jsonl


class ArenaHard(JudgedBenchmark):
    """Arena-Hard-Auto: both games per question against the version's baseline."""

    run: Literal["arena_hard"] = "arena_hard"
    """Which evaluation."""
    version: Literal["v0.1", "v2.0"]
    """Of the benchmark; says the baselines, the categories and the interval."""
    questions: NonEmpty
    """The version's question.jsonl."""
    baseline_answers: tuple[NonEmpty, ...] = Field(min_length=1)
    """The baselines' model_answer files, one per baseline."""
    answers: NonEmpty | None = None
    """The model's model_answer file; null lets the recipe's model write it."""
    model: str | None = Field(default=None, min_length=1)
    """The model's name in tables; null takes what `answers` says, or the recipe's model."""
    max_new_tokens: int = Field(default=16000, ge=16)
    """Of a judge's answer."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge."""
    categories: tuple[str, ...] | None = None
    """Judge only these; null takes all that the questions have."""
    style_control: bool = False
    """Also report the score at equal style; the answers need style counts or a tokenizer."""
    tokenizer: NonEmpty | None = None
    """Folder or Hub id of the tokenizer that counts lengths where an answer has no metadata."""
    resamples: int = Field(default=100, ge=10)
    """Of the bootstrap."""

    def called(self) -> str | None:
        """The model's name in tables, where the recipe gives one."""
        return self.model

    def reads_files(self) -> Sequence[str]:
        """Files that it reads."""
        return [self.questions, *self.baseline_answers, *([self.answers] if self.answers else [])]

    def planned(self) -> list[str]:
        """What would be asked of whom; reads every file that the recipe names."""
        check_baselines(questions_of(self), _opponents(self, _baselines(self)))
        return super().planned()

    def there(self) -> int:
        """Number of questions of the categories that are judged."""
        return len(_all_questions(self))

    def asks_policy(self) -> bool:
        """Whether the model must answer."""
        return self.answers is None

    def prompts(self) -> dict[str, str]:
        """What the model is asked: uid -> prompt."""
        return prompts_of(self)

    def read(self) -> Outputs:
        """The answers that the recipe names."""
        return answers_of(self)

    def judge(self, outputs: Outputs, caller: CachedCaller, folder: Path) -> dict[str, Any]:
        """Judges, scores and writes everything to `folder`."""
        return run_arena_hard(self, outputs, caller, folder, self._counter())

    def _counter(self) -> Callable[[str], int] | None:
        if self.tokenizer is None:
            return None
        tokenizer: Any = AutoTokenizer.from_pretrained(self.tokenizer)
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def questions_of(node: ArenaHard) -> list[ArenaQuestion]:
    """The questions that are judged.

    Raises:
        DataError: the file cannot be read.
        RecipeError: a category that the file does not have, or that the version does not know.
    """
    return _all_questions(node)[: node.limit]


def _all_questions(node: ArenaHard) -> list[ArenaQuestion]:
    """As `questions_of`, without `limit`."""
    questions = read_questions(Path(node.questions))
    there = {question.category for question in questions}
    known = set(BENCHMARKS[node.version].baselines)
    wanted = there if node.categories is None else set(node.categories)
    if not wanted <= there & known:
        raise RecipeError(
            f"categories: {', '.join(sorted(wanted - (there & known)))} cannot be judged with "
            f"version {node.version}, whose categories are {', '.join(sorted(known))}; the file "
            f"{node.questions} has {', '.join(sorted(there))}."
        )
    return [question for question in questions if question.category in wanted]


def prompts_of(node: ArenaHard) -> dict[str, str]:
    """What the model is asked: uid -> prompt."""
    return {question.uid: question.prompt for question in questions_of(node)}


def answers_of(node: ArenaHard) -> Outputs:
    """The answers that the recipe names.

    Raises:
        RecipeError: it names none; they must be generated.
        DataError: the file answers another question, or names several models.
    """
    if node.answers is None:
        raise RecipeError("answers: is null; let the model write them, or name a file.")
    answers = read_answers(Path(node.answers))
    uids = {question.uid for question in read_questions(Path(node.questions))}
    names = {answer.model for answer in answers.values()}
    if foreign := set(answers) - uids:
        raise DataError(
            f"{node.answers}: {len(foreign)} of {len(answers)} answers have a uid that no question "
            "has. Give answers to this version's questions."
        )
    if node.model is None and len(names) != 1:
        raise DataError(f"{node.answers} names {len(names)} models and must name one.")
    wanted = {question.uid for question in questions_of(node)}
    missing = len(wanted - set(answers))
    return Outputs(
        node.model or names.pop(),
        {uid: answer.text for uid, answer in answers.items() if uid in wanted},
        {"no answer (not in the file)": missing} if missing else {},
        {"file": Path(node.answers).name},
    )


def run_arena_hard(
    node: ArenaHard,
    outputs: Outputs,
    caller: CachedCaller,
    folder: Path,
    count_tokens: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """Judges the answers, and writes everything to `folder`.

    model_answer/MODEL.jsonl and model_judgment/JUDGE/MODEL.jsonl have the official formats;
    results.json and table.md hold scores, counts and provenance. Running it again asks only what
    failed.

    Args:
        node: settings.
        outputs: the model's answers by uid.
        caller: of the annotator, with store and limits.
        folder: made when absent.
        count_tokens: length of a text, for answers without style metadata.

    Returns:
        What results.json holds.

    Raises:
        DataError: more than max_failed failed, or an input does not fit.
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    questions = questions_of(node)
    theirs = _baselines(node)
    judged = judge_model(
        caller,
        questions,
        outputs.texts,
        _opponents(node, theirs),
        model=outputs.generator,
        max_new_tokens=node.max_new_tokens,
        temperature=node.temperature,
    )
    answered = [question for question in questions if question.uid in outputs.texts]
    rows = answer_rows(answered, outputs.generator, outputs.texts, count_tokens)
    stem = outputs.generator.replace("/", "_")
    write_answers(folder / "model_answer" / f"{stem}.jsonl", rows)
    judge = node.annotator.model.replace("/", "_")
    write_jsonl(folder / "model_judgment" / judge / f"{stem}.jsonl", judged.rows)
    scores, table = _scores(node, judged, outputs, theirs, count_tokens)
    # A question without an answer has two failed games and one reason of its own.
    unasked = len(questions) - len(answered)
    counts = Counter(judged.reasons) + Counter(outputs.reasons)
    counts["no answer of the model"] -= 2 * unasked
    result = Result(
        name=f"arena_hard {node.version}",
        scores=scores,
        table=table,
        n=judged.n,
        n_judged=judged.n_judged,
        n_failed=judged.n_failed,
        reasons=dict(sorted((+counts).items())),
        provenance={
            "model": outputs.generator,
            "answers": dict(outputs.about),
            "judge": judge_of(
                caller,
                template=TEMPLATE,
                parser=PARSER,
                max_new_tokens=node.max_new_tokens,
                temperature=node.temperature,
            ),
            "n_masked": judged.n_masked,
            "bootstrap": {"resamples": node.resamples, "seed": node.seed},
            "inputs": inputs_of(
                questions=node.questions,
                answers=node.answers,
                **{f"baseline_{i}": path for i, path in enumerate(node.baseline_answers)},
            ),
        },
        n_cut=outputs.n_cut,
        limited=node.limited(),
        order=order_effect(map(places_of, judged.rows)),
        notes=outputs.notes,
    )
    return write_result(folder, result, max_failed=node.max_failed)


def _opponents(
    node: ArenaHard, theirs: Mapping[str, Mapping[str, ModelAnswer]]
) -> dict[str, tuple[str, dict[str, str]]]:
    """Category -> name and texts by uid of the baseline, where its answers are given."""
    return {
        category: (name, {uid: answer.text for uid, answer in theirs[name].items()})
        for category, name in BENCHMARKS[node.version].baselines.items()
        if name in theirs
    }


def _baselines(node: ArenaHard) -> dict[str, dict[str, ModelAnswer]]:
    found: dict[str, dict[str, ModelAnswer]] = {}
    for path in node.baseline_answers:
        answers = read_answers(Path(path))
        for answer in answers.values():
            found.setdefault(answer.model, {})[answer.uid] = answer
    return found


def _scores(
    node: ArenaHard,
    judged: Judged,
    outputs: Outputs,
    theirs: Mapping[str, Mapping[str, ModelAnswer]],
    count_tokens: Callable[[str], int] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    benchmark = BENCHMARKS[node.version]
    scores: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    for category in sorted({row["category"] for row in judged.rows}):
        battles = battles_of(judged.rows, category)
        if not battles.outcomes:
            continue
        settings: dict[str, Any] = {
            "seed": node.seed,
            "interval": benchmark.interval,
            "resamples": node.resamples,
        }
        (score,) = leaderboard(battles, **settings)
        found: dict[str, Any] = {"baseline": benchmark.baselines[category], **score.to_json()}
        row: dict[str, Any] = {
            "category": category,
            "model": score.model,
            "score": score.score,
            "low": score.low,
            "high": score.high,
            "questions": score.n_questions,
            "dropped": score.n_dropped,
        }
        if node.style_control:
            answers = _with_style(outputs, theirs, node, count_tokens)
            controlled = style_controlled(battles, answers, **settings)
            found["style_controlled"] = {
                **controlled.scores[0].to_json(),
                "coefficients": dict(controlled.coefficients),
            }
            row["at equal style"] = controlled.scores[0].score
        scores[category] = found
        table.append(row)
    return scores, table


def _with_style(
    outputs: Outputs,
    theirs: Mapping[str, Mapping[str, ModelAnswer]],
    node: ArenaHard,
    count_tokens: Callable[[str], int] | None,
) -> dict[str, dict[str, ModelAnswer]]:
    """All answers with style counts; lengths are counted by one tokenizer or by none."""
    ours: Mapping[str, ModelAnswer]
    if node.answers is not None:
        ours = read_answers(Path(node.answers))
    else:
        ours = {
            uid: ModelAnswer(uid, outputs.generator, text, None)
            for uid, text in outputs.texts.items()
        }
    everything = {**theirs, outputs.generator: ours}
    if count_tokens is None:
        return {model: dict(answers) for model, answers in everything.items()}
    # Counts of two tokenizers would not compare, so with one of our own all are counted anew.
    return {
        model: {
            uid: replace(answer, style=style_counts(answer.text, count_tokens))
            for uid, answer in answers.items()
        }
        for model, answers in everything.items()
    }
