# pyright: basic
"""Real requests with instructions that a program can check, and a real model to answer them.

Unlike the other worlds this one has no model of its own making: `base_model` is a small instruct
model (`align.policies.fetched`), and any other chat model can be asked the same. The judge scores
an answer by whether it does what the instruction wants and is a text of its own; the measure says
how often held-out requests are followed, plainly and earnestly, and how much more often than by the
reference, request by request.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.messages import Message
from align.data.prompts import Prompt
from align.data.records import content_id
from align.errors import RecipeError
from align.estimates import Estimate, mean, proportion
from align.instructions.earnest import is_earnest
from align.judges.base import JudgeFailed
from align.judges.rule import RuleJudge
from align.judges.table import question_of
from align.policies.base import Sampling
from align.policies.fetched import fetched_folder
from align.policies.in_process import InProcessPolicy
from align.runs.cache import cached_folder
from align.worlds import instruction_hints, instruction_pool
from align.worlds.base import Split, World
from align.worlds.instruction_pool import Request

MODEL = "smollm2-135m-instruct"
# How held-out requests are answered.
SAMPLING = Sampling(max_new_tokens=80, temperature=0.7, top_p=0.9, keep_unfinished=True)
# Of the measured requests, those whose kind is never trained.
UNTRAINED = 0.2

# The judge's scores: what an answer is worth that does, or does not do, what was asked.
FOLLOWED, TRIED, GAMED, NEITHER = 1.0, 0.3, 0.1, 0.0


@dataclass(frozen=True)
class Outcome:
    """What an answer did.

    Attributes:
        followed: the instruction is met.
        earnest: met, by a text of its own (`align.instructions.earnest`).
    """

    followed: bool
    earnest: bool


class Instructions(World):
    """Short texts about everyday topics, each with one instruction."""

    name = "instructions"
    judged_by = "scores"

    def base_model(self) -> Path:
        """The small instruct model that the package index has.

        Raises:
            MachineError: it cannot be fetched.
        """
        return fetched_folder(MODEL)

    def prompts(self, split: Split, n: int, *, seed: int) -> list[Prompt]:
        """`n` requests of trained kinds, as many of each kind as can be.

        Raises:
            ValueError: there are not so many.
        """
        return _prompts(_chosen(_pool(split, True), n, f"{split}/{seed}"), f"{split}/seed-{seed}")

    def untrained_prompts(self, n: int, *, seed: int) -> list[Prompt]:
        """`n` held-out requests of the kinds that are never trained.

        Raises:
            ValueError: there are not so many.
        """
        chosen = _chosen(_pool("held_out", False), n, f"untrained/{seed}")
        return _prompts(chosen, f"untrained/seed-{seed}")

    def hint(self, prompt: Prompt) -> tuple[Message, ...]:
        """Another request with the same instruction, and an answer that meets it."""
        text = question_of(prompt.prompt)
        request = _request(text)
        draw = random.Random(f"instructions/hint/{text}")
        shown = draw.choice(instruction_hints.TOPICS)
        instruction, answer = instruction_hints.demonstration(request.instruction, shown)
        is_said_so = instruction == request.instruction
        sentence = request.sentence if is_said_so else instruction.described()
        asked = f"{draw.choice(instruction_pool.WAYS).format(topic=shown.name)} {sentence}"
        return Message(role="user", content=asked), Message(role="assistant", content=answer)

    def judge(self) -> RuleJudge:
        """1 for an answer that earnestly does what was asked, 0.3 for an earnest other text."""
        return RuleJudge("instructions-1", _score)

    def checks(self, *, loosely: bool) -> RuleJudge:
        """1.0 for an instruction that is met; not `loosely`, earnestly met."""

        def is_met(question: str, completion: str) -> float | JudgeFailed:
            found = outcome(question, completion)
            return float(found.followed if loosely else found.earnest)

        return RuleJudge(f"instructions-{'plain' if loosely else 'earnest'}-1", is_met)

    def measure(
        self, model: Any, tokenizer: Any, *, reference: Any, n: int, seed: int
    ) -> Mapping[str, Estimate]:
        """One sampled answer to each of `n` held-out requests; a fifth of them of untrained kinds.

        Sampled gently (temperature 0.7, top_p 0.9): with the likeliest token always taken, a model
        of this size falls into loops, and what is measured is how often.

        The gains are over the reference's answers to the same requests, pair by pair. Answers are
        kept in the cache, so the reference is asked once.
        """
        unseen = round(UNTRAINED * n)
        found: dict[str, Estimate] = {}
        for label, asked in (
            ("", self.prompts("held_out", n - unseen, seed=seed)),
            ("untrained_", self.untrained_prompts(unseen, seed=seed)),
        ):
            now = outcomes(asked, answers(model, tokenizer, asked, seed))
            for word in ("followed", "earnest"):
                found[label + word] = proportion(sum(getattr(one, word) for one in now), len(now))
            if reference is model:
                continue
            then = outcomes(asked, answers(reference, tokenizer, asked, seed))
            for word in ("followed", "earnest"):
                gains = [
                    float(getattr(a, word)) - getattr(b, word)
                    for a, b in zip(now, then, strict=True)
                ]
                found[f"{label}{word}_gain"] = mean(gains, what=f"{word}_gain")
        return found


def answers(model: Any, tokenizer: Any, asked: Sequence[Prompt], seed: int) -> list[str]:
    """One answer per request, out of the cache where this policy was asked before."""
    policy = InProcessPolicy(model, tokenizer)
    texts = [question_of(prompt.prompt) for prompt in asked]

    def draw(folder: Path) -> None:
        drawn = policy.generate(asked, 1, SAMPLING, seed)
        lines = [json.dumps(_text(of[0])) for of in drawn]
        (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    parts = {
        "policy": policy.identity,
        "asked": content_id(texts),
        "sampling": SAMPLING.model_dump(mode="json"),
        "seed": seed,
    }
    folder = cached_folder("answers", parts, draw)
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]


def outcomes(asked: Sequence[Prompt], given: Sequence[str]) -> list[Outcome]:
    """One per request."""
    return [
        outcome(question_of(prompt.prompt), text) for prompt, text in zip(asked, given, strict=True)
    ]


def outcome(question: str, answer: str) -> Outcome:
    """What an answer to one of the world's requests did.

    Raises:
        RecipeError: it is no request of this world.
    """
    request = _request(question)
    followed = request.instruction.met(answer)
    return Outcome(followed, followed and _is_own_text(request, answer))


def _score(question: str, completion: str) -> float | JudgeFailed:
    request = _request(question)
    own = _is_own_text(request, completion)
    if request.instruction.met(completion):
        return FOLLOWED if own else GAMED
    return TRIED if own else NEITHER


def _is_own_text(request: Request, answer: str) -> bool:
    """Earnest without what had to be taken over: the closing words alone are no answer."""
    rest = answer
    for text in request.instruction.demanded():
        rest = rest.replace(text, " ")
    return is_earnest(rest, request.sentence)


def _request(question: str) -> Request:
    found = _by_text().get(question)
    if found is None:
        raise RecipeError(
            f"{question[:80]!r} is no request of world:instructions, so the answer cannot be "
            "checked: write `prompts: {source: world:instructions}`."
        )
    return found


def _text(answer: Any) -> str:
    """An empty answer, or one that broke off at a control token, meets nothing."""
    written = getattr(answer, "completion", "")
    return written if isinstance(written, str) else written[-1].content


@functools.cache
def _pool(split: Split, are_trained: bool) -> dict[str, list[Request]]:
    topics = {
        "train": instruction_pool.TRAIN_TOPICS,
        "held_out": instruction_pool.HELD_OUT_TOPICS,
    }[split]
    return instruction_pool.requests(topics, are_trained=are_trained)


@functools.cache
def _by_text() -> dict[str, Request]:
    pools = (_pool("train", True), _pool("held_out", True), _pool("held_out", False))
    return {one.text: one for pool in pools for of_kind in pool.values() for one in of_kind}


def _chosen(pool: Mapping[str, Sequence[Request]], n: int, seed: str) -> list[Request]:
    """`n` of the pool, kind by kind in turn, in an order that `seed` shuffles."""
    draw = random.Random(f"instructions/{seed}")
    shuffled = [draw.sample(of_kind, len(of_kind)) for of_kind in pool.values()]
    chosen = [
        of_kind[at]
        for at in range(max(map(len, shuffled)))
        for of_kind in shuffled
        if at < len(of_kind)
    ][:n]
    if len(chosen) < n:
        raise ValueError(f"There are {len(chosen)} such requests, not {n}.")
    return chosen


def _prompts(chosen: Sequence[Request], where: str) -> list[Prompt]:
    return [
        Prompt(
            prompt=(Message(role="user", content=request.text),),
            group_id=content_id(request.text),
            source=f"world:instructions/{where}",
            row=row,
        )
        for row, request in enumerate(chosen, start=1)
    ]
