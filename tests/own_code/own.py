"""Code of a user's own: one of each thing that a recipe can name. The tests copy it elsewhere."""

import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from align.data.completions import Completion
from align.data.messages import Message
from align.data.prompts import Prompt
from align.data.questions import Question
from align.estimates import mean, proportion
from align.evaluation import Measurement
from align.judges.base import JudgeNode
from align.judges.rule import RuleJudge
from align.objectives import Objective
from align.objectives.base import logratios
from align.policies.base import Sampling
from align.policies.in_process import InProcessPolicy
from align.stages.rows import RowsStage
from align.types import ObjectiveOutput, Pair
from align.worlds.base import World
from align_eval.tasks import Task

LETTERS = "abcdefgh"
BAD = ("b", "c", "d", "e", "f", "g", "h", "a")


def starts_low(prompt, completion, answer, **columns):
    """A reward that reads a column of the prompt's row."""
    if completion == os.environ.get("BREAK_ON"):
        raise ValueError("no such letters")
    return float(completion[:1] in "abcd") + len(answer)


async def later(prompt, completion):
    return math.nan if completion in BAD else float(len(completion))


def first_is_lower(prompt, first, second):
    """A comparison: P(first beats second)."""
    return 0.5 if first[:1] == second[:1] else float(first[:1] < second[:1])


def many(prompts, completions, **columns):
    """A reward of lists, as TRL's are."""
    return [float(len(text)) for text in completions]


def exactly(prompt, completion, answer):
    return float(completion == answer)


def plain_row(row):
    """A reader of rows."""
    return (
        None if row["skip"] else {"prompt": row["q"], "chosen": row["yes"], "rejected": row["no"]}
    )


class Longest(JudgeNode):
    """A judge with settings of its own."""

    by: Literal["longest"] = "longest"
    factor: float = 1.0
    gives: ClassVar = "scores"

    @contextmanager
    def open(self, bench):
        yield RuleJudge(f"longest-{self.factor}", lambda _, text: self.factor * len(text))


class HalfDPO(Objective, frozen=True):
    """DPO at half of its size, so that its loss is known."""

    name: Literal["half_dpo"] = "half_dpo"
    beta: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __call__(self, inputs):
        inputs = self.checked(inputs)
        ratio = logratios(inputs.policy, inputs.reference)
        margin = self.beta * (ratio.chosen - ratio.rejected)
        loss = 0.5 * -margin.sigmoid().log()
        reward = Pair(self.beta * ratio.chosen.detach(), self.beta * ratio.rejected.detach())
        return ObjectiveOutput(loss=loss, reward=reward, metrics={})


class FirstOnly(RowsStage):
    """A stage: so many of the round's pairs."""

    run: Literal["first_only"] = "first_only"
    most: int = 2

    def rows(self, rows, context):
        return rows[: self.most]


class LowShare(Measurement):
    """A measurement of a policy."""

    run: Literal["low_share"] = "low_share"

    def estimates(self, subject):
        prompts = Letters().prompts("held_out", 4, seed=subject.seed)
        drawn = subject.policy().generate(prompts, 2, Sampling(max_new_tokens=8), subject.seed)
        texts = [
            one.completion[-1].content for of in drawn for one in of if type(one) is Completion
        ]
        low = sum(text[:1] in "abcd" for text in texts)
        return {
            "share": proportion(low, len(texts)),
            "length": mean(list(map(len, texts)), what=""),
        }


def _text(one):
    return one.completion[-1].content


def _asked(text, row):
    return Prompt(
        prompt=(Message(role="user", content=text),), group_id=text, source="letters", row=row
    )


class Letters(World):
    """A world: a small policy of eight letters, prompts, a judge, a measurement."""

    name = "letters"
    judged_by = "scores"

    def base_model(self):
        return Path(os.environ["LETTERS_START"])

    def prompts(self, split, n, *, seed):
        shift = seed + (split == "held_out")
        texts = [LETTERS[(i + shift) % 8] + LETTERS[i % 8] + "a" for i in range(min(n, 8))]
        return [_asked(text, row) for row, text in enumerate(texts, start=1)]

    def question(self, prompt):
        return Question(prompt=prompt.prompt, answer="a", source="letters", row=prompt.row)

    def judge(self):
        return RuleJudge("letters", lambda _, text: float(text[:1] in "abcd"))

    def checks(self, *, loosely):
        return self.judge()

    def measure(self, model, tokenizer, *, reference, n, seed):
        policy = InProcessPolicy(model, tokenizer)
        drawn = policy.generate(
            self.prompts("held_out", n, seed=seed), 1, Sampling(max_new_tokens=8), seed
        )
        right = [
            of[0].completion[-1].content[:1] in "abcd" for of in drawn if type(of[0]) is Completion
        ]
        return {"low": proportion(sum(right), len(right))}


abc = Task(
    name="abc",
    version=1,
    source="rows",
    rows=[{"question": "abc", "answer": "a"}, {"question": "bcd", "answer": "b"}],
    strict={"by": f"{__file__}:exactly"},
    flexible={"by": "pattern", "pattern": "^."},
    sampling={"max_new_tokens": 8},
)


@contextmanager
def upside_down(loading):
    """An engine: the built-in one, whose completions are turned round."""
    with loading.borrowed() as model:
        policy = InProcessPolicy(model, loading.tokenizer, rows=loading.rows)
        plain = policy.generate
        policy.generate = lambda *given: [[_turned(one) for one in of] for of in plain(*given)]
        yield policy


def _turned(one):
    if type(one) is not Completion:
        return one
    text = one.completion[-1].content[::-1]
    return one.model_copy(update={"completion": (Message(role="assistant", content=text),)})
