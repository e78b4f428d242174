"""Asks a language model for Arena-Hard's verdicts: two games per question, sides swapped.

Prompts are those of lmarena/arena-hard-auto, commit 196f6b8 (utils/judge_utils.py and
config/arena-hard-v*.yaml). Differs from it: what could be read as a verdict inside a question or an
answer is sent in round brackets, since a judge that quotes it would give the answer's verdict; how
often that was done is reported (never, in the published questions and baseline answers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.messages import Message
from align.data.records import content_id
from align.errors import DataError
from align.servers.caller import CachedCaller
from align.servers.server import Call, Reply, Unanswered, no_text
from align_eval.arena_hard.files import ArenaQuestion
from align_eval.arena_hard.verdicts import parse_verdict, without_labels
from align_eval.row_files import Row

PARSER = "arena-hard-verdict-1"
_BEGIN = """\
Please act as an impartial judge and evaluate the quality of the responses provided by two AI \
assistants to the user prompt displayed below. You will be given assistant A's answer and \
assistant B's answer. Your job is to evaluate which assistant's answer is better.

"""
_OWN_ANSWER = """\
Begin your evaluation by generating your own answer to the prompt. You must provide your answers \
before judging any answers.

When evaluating the assistants' answers, compare both assistants' answers with your answer."""
_NO_OWN_ANSWER = "When evaluating the assistants' answers, compare both assistants' answers."
_END = """ \
You must identify and correct any mistakes or inaccurate information.

Then consider if the assistant's answers are helpful, relevant, and concise. Helpful means the \
answer correctly responds to the prompt or follows the instructions. Note when user prompt has any \
ambiguity or more than one interpretation, it is more helpful and appropriate to ask for \
clarifications or more information from the user than providing an answer based on assumptions. \
Relevant means all parts of the response closely connect or are appropriate to what is being \
asked. Concise means the response is clear and not verbose or excessive.

Then consider the creativity and novelty of the assistant's answers when needed. Finally, identify \
any missing important information in the assistants' answers that would be beneficial to include \
when responding to the user prompt.

After providing your explanation, you must output only one of the following choices as your final \
verdict with a label:

1. Assistant A is significantly better: [[A>>B]]
2. Assistant A is slightly better: [[A>B]]
3. Tie, relatively the same: [[A=B]]
4. Assistant B is slightly better: [[B>A]]
5. Assistant B is significantly better: [[B>>A]]

Example output: "My final verdict is tie: [[A=B]]"."""
SYSTEM = _BEGIN + _OWN_ANSWER + _END
SYSTEM_CREATIVE = _BEGIN + _NO_OWN_ANSWER + _END
USER = (
    "<|User Prompt|>\n{question}\n\n"
    "<|The Start of Assistant A's Answer|>\n{answer_a}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{answer_b}\n<|The End of Assistant B's Answer|>"
)
TEMPLATE = f"arena-hard-{content_id(SYSTEM, SYSTEM_CREATIVE, USER)[:8]}"


@dataclass(frozen=True)
class Judged:
    """Judgments of one model, in the benchmark's own format, and what is missing in them.

    Attributes:
        rows: one per question, in their order; a game without a verdict is null.
        n: questions; n_judged + n_failed.
        n_judged: with two verdicts.
        n_failed: without.
        reasons: failed games by reason.
        n_masked: games in which something like a verdict was sent in round brackets.
    """

    rows: list[Row]
    n: int
    n_judged: int
    n_failed: int
    reasons: Mapping[str, int]
    n_masked: int


def judge_model(
    caller: CachedCaller,
    questions: Sequence[ArenaQuestion],
    answers: Mapping[str, str],
    baselines: Mapping[str, tuple[str, Mapping[str, str]]],
    *,
    model: str,
    max_new_tokens: int,
    temperature: float,
) -> Judged:
    """Two games per question: the baseline as assistant A, then the model as assistant A.

    Args:
        caller: of the judge, with store and limits.
        questions: to be judged.
        answers: of the model, by uid; a question without one fails unasked.
        baselines: category -> name and answers by uid of what the model is compared with.
        model: its name.
        max_new_tokens: of a judge's answer.
        temperature: of the judge.

    Raises:
        DataError: a question's category has no baseline, or the baseline lacks its answer.
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    parameters: dict[str, Any] = {
        "max_completion_tokens": max_new_tokens,
        "temperature": temperature,
        **caller.caller.extra,
    }
    calls: list[Call] = []
    places: dict[tuple[str, int], int] = {}
    n_masked = 0
    for question in questions:
        _, theirs = _baseline(question, baselines)
        ours = answers.get(question.uid)
        if ours is None or not ours.strip():
            continue
        for game, (first, second) in enumerate(((theirs, ours), (ours, theirs))):
            messages, masked = _messages(question, first, second)
            n_masked += masked
            places[question.uid, game] = len(calls)
            calls.append(Call(messages, parameters, TEMPLATE, PARSER))
    replies = caller.ask(calls, lambda _, reply: _trouble(reply))
    reasons: Counter[str] = Counter()
    rows: list[Row] = []
    for question in questions:
        games: list[Row | None] = []
        for game in range(2):
            place = places.get((question.uid, game))
            if place is None:
                reasons["no answer of the model"] += 1
                games.append(None)
                continue
            reply = replies[place]
            if isinstance(reply, Unanswered):
                reasons[reply.reason] += 1
                games.append(None)
            else:
                games.append(_game(calls[place], reply))
        rows.append(
            {
                "uid": question.uid,
                "category": question.category,
                "judge": caller.caller.model,
                "model": model,
                "baseline": _baseline(question, baselines)[0],
                "games": games,
            }
        )
    judged = sum(None not in row["games"] for row in rows)
    return Judged(
        rows=rows,
        n=len(rows),
        n_judged=judged,
        n_failed=len(rows) - judged,
        reasons=dict(sorted(reasons.items())),
        n_masked=n_masked,
    )


def check_baselines(
    questions: Sequence[ArenaQuestion], baselines: Mapping[str, tuple[str, Mapping[str, str]]]
) -> None:
    """Whether every question has its baseline's answer.

    Raises:
        DataError: a question's category has no baseline, or the baseline lacks its answer.
    """
    for question in questions:
        _baseline(question, baselines)


def _baseline(
    question: ArenaQuestion, baselines: Mapping[str, tuple[str, Mapping[str, str]]]
) -> tuple[str, str]:
    if question.category not in baselines:
        raise DataError(
            f"Question {question.uid} is of the category {question.category!r}, for which there is "
            f"no baseline; there is one for {', '.join(baselines) or 'none'}. Name the version of "
            "the benchmark that the questions belong to."
        )
    name, texts = baselines[question.category]
    if question.uid not in texts:
        raise DataError(
            f"The baseline {name} has no answer to question {question.uid}. Give the benchmark's "
            "own answers of the baseline, complete."
        )
    return name, texts[question.uid]


def _messages(question: ArenaQuestion, first: str, second: str) -> tuple[tuple[Message, ...], bool]:
    parts = [without_labels(text) for text in (question.prompt, first, second)]
    (asked, _), (answer_a, _), (answer_b, _) = parts
    system = SYSTEM_CREATIVE if question.category == "creative_writing" else SYSTEM
    user = USER.format(question=asked, answer_a=answer_a, answer_b=answer_b)
    messages = (Message(role="system", content=system), Message(role="user", content=user))
    return messages, any(count for _, count in parts)


def _trouble(reply: Reply) -> Unanswered | None:
    problem = no_text(reply)
    if problem is None and parse_verdict(reply.text) is None:
        problem = Unanswered(
            "unparsable",
            f"no verdict in {len(reply.text)} characters (finish_reason {reply.finish})",
        )
    return problem


def _game(call: Call, reply: Reply) -> Row:
    assert call.messages is not None
    return {
        "score": parse_verdict(reply.text),
        "judgment": {"answer": reply.text},
        "prompt": [message.model_dump() for message in call.messages],
    }
