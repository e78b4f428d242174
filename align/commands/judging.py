# pyright: basic
"""Completions of a round -> judged prompts, by the judge that a recipe names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import DataError, RecipeError
from align.judges.base import Answer, JudgeFailed
from align.judges.matrix import Matrix, Question, from_scores, preference_matrices, tournaments
from align.recipe.stages import Ask, Judge, Select
from align.records import JudgedPrompt, Message, content_id

if TYPE_CHECKING:
    from align.commands.stages import Workshop

SUMS = "world:sums"


def ask_for(node: Judge, select: Select | None, source: str) -> Ask:
    """What the judge is asked: the node's word, else what judge and select stage need.

    Args:
        node: of the judge stage.
        select: of the select stage, where there is one.
        source: of the prompts; the judge of a world scores or compares as its world does.

    Raises:
        RecipeError: the judge cannot answer that, or the select stage cannot use the answer.
    """
    rule = None if select is None else select.rule
    it_scores = node.by in ("answers", "reward_model") or (node.by, source) == ("world", SUMS)
    if node.ask is None:
        if it_scores:
            return "scores"
        return rule if rule == "tournament" or rule == "random_pair" else "all_pairs"
    if it_scores != (node.ask == "scores"):
        does = (
            "scores each completion; write `ask: scores`"
            if it_scores
            else ("compares two completions; write all_pairs, tournament or random_pair")
        )
        raise RecipeError(
            f"each_round: the judge is asked for {node.ask}, and the judge of {source} {does}, or "
            "leave `ask` out."
        )
    if node.ask in ("tournament", "random_pair") and rule != node.ask:
        raise RecipeError(
            f"each_round: the judge asks for the comparisons of {node.ask}, and the select stage "
            f"{f'takes {rule}' if rule else 'is missing'}; write `rule: {node.ask}` there, or "
            "`ask: all_pairs`."
        )
    return node.ask


@contextlib.contextmanager
def build_judge(node: Judge, workshop: Workshop, loop: Path) -> Iterator[Any]:
    """The judge of a node; models are loaded, and a server's answers kept in the loop's folder."""
    match node.by:
        case "world":
            yield _world_judge(workshop)
        case "answers":
            from align.judges.rule import LAST_NUMBER, known_answer_judge

            assert node.path is not None
            yield known_answer_judge(_answers(node.path), node.pattern or LAST_NUMBER)
        case "reward_model":
            assert node.path is not None
            yield _reward_model(node.path)
        case "llm":
            from align.commands.engines import cached_caller
            from align.judges.pairwise_llm import PairwiseLLM

            assert node.server is not None
            with cached_caller(node.server, loop) as caller:
                yield PairwiseLLM(caller, node.how)


def judge_prompts(
    judge: Any,
    asked: Ask,
    node: Judge,
    select: Select | None,
    lines: Sequence[Mapping[str, Any]],
    number: int,
) -> list[JudgedPrompt]:
    """One `JudgedPrompt` per line of the generate stage, in their order."""
    if asked == "scores":
        return _scored(judge, node, lines, number)
    prompts = [_prompt(line) for line in lines]
    questions = [
        Question(prompt, tuple(line["completions"]))
        for prompt, line in zip(prompts, lines, strict=True)
    ]
    return [
        _judged(line, prompt, number, judge.identity, matrix)
        for line, prompt, matrix in zip(
            lines, prompts, _matrices(judge, asked, select, questions, number), strict=True
        )
    ]


def _matrices(
    judge: Any, asked: Ask, select: Select | None, questions: Sequence[Question], number: int
) -> list[Matrix]:
    from pydantic import TypeAdapter

    from data_pipelines.select import AllPairs, SelectRule, pairs_to_ask

    if asked == "tournament":
        # One completion, or none, has nobody to play against.
        able = [q for q in questions if len(q.completions) > 1]
        played = iter(tournaments(judge, able)) if able else iter(())
        return [next(played).matrix if len(q.completions) > 1 else _alone(q) for q in questions]
    rule: Any = AllPairs()
    if asked == "random_pair":
        assert select is not None, "ask_for refuses it"
        rule = TypeAdapter(SelectRule).validate_python(select.selection())
    wanted = [
        pairs_to_ask(rule, question.prompt, number, len(question.completions)) or ()
        for question in questions
    ]
    return preference_matrices(judge, questions, wanted)


def _alone(question: Question) -> Matrix:
    k = len(question.completions)
    return Matrix(tuple((0.5,) * k for _ in range(k)), (), 0)


def _scored(
    judge: Any, node: Judge, lines: Sequence[Mapping[str, Any]], number: int
) -> list[JudgedPrompt]:
    prompts = [_prompt(line) for line in lines]
    items = [
        Answer(prompt, text, content_id(line["prompt"], text))
        for prompt, line in zip(prompts, lines, strict=True)
        for text in line["completions"]
    ]
    found = iter(judge.score(items))
    rows: list[JudgedPrompt] = []
    for prompt, line in zip(prompts, lines, strict=True):
        verdicts = [next(found) for _ in line["completions"]]
        scores = tuple(None if isinstance(v, JudgeFailed) else float(v) for v in verdicts)
        failures = tuple(
            f"completion {i}: {v.reason} ({v.detail})"
            for i, v in enumerate(verdicts)
            if isinstance(v, JudgeFailed)
        )
        matrix = Matrix(from_scores(scores, node.score_scale), failures, len(verdicts))
        rows.append(_judged(line, prompt, number, judge.identity, matrix, scores))
    return rows


def _judged(
    line: Mapping[str, Any],
    prompt: Any,
    number: int,
    judge: str,
    matrix: Matrix,
    scores: tuple[float | None, ...] | None = None,
) -> JudgedPrompt:
    return JudgedPrompt(
        prompt=prompt,
        group_id=line["group_id"],
        source=line["source"],
        row=line["row"],
        round=number,
        sampler=line["sampler"],
        completions=tuple(line["completions"]),
        scores=scores,
        preferences=matrix.preferences,
        failures=(*line["failures"], *matrix.failures),
        judge=judge,
        calls=matrix.calls,
    )


def _prompt(line: Mapping[str, Any]) -> Any:
    prompt = line["prompt"]
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)


def _world_judge(workshop: Workshop) -> Any:
    prompts = workshop.recipe.prompts
    source = "" if prompts is None else prompts.source
    match source:
        case "world:sums":
            from align.judges.rule import sums_judge

            return sums_judge()
        case "world:styles":
            from align.judges.table import styles_judge

            return styles_judge()
        case _:
            raise RecipeError(
                f"each_round: `by: world` judges the prompts of a world, and prompts.source is "
                f"{source!r}; write world:sums or world:styles there, or name another judge."
            )


def _answers(path: str) -> dict[str, str]:
    known: dict[str, str] = {}
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The judge's answers {path} cannot be read ({error.strerror}). Write a JSON lines "
            'file of {"prompt": ..., "answer": ...}.'
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            known[str(row["prompt"])] = str(row["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number}: no {{"prompt": ..., "answer": ...}} stands there. Mend the '
                "line, or take it out."
            ) from error
    return known


def _reward_model(path: str) -> Any:
    from accelerate import PartialState
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from align.judges.reward_model import RewardModelJudge

    name, _, revision = path.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(name, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(
            f"each_round: the judge's reward model {path!r} cannot be loaded ({first}). Write the "
            "folder or Hub id of a sequence classifier with one output."
        ) from error
    return RewardModelJudge(model.to(PartialState().device).eval(), tokenizer)
