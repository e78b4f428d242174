"""A rule-based expert for the world `sums`: for tests, and for recipes that run in seconds.

It corrects a response line by line as a careful person would: a line is wrong for its own error, or
needs a small fix because an earlier one was corrected. What has not three lines is rewritten.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from align.data.completions import Completion
from align.data.prompts import Prompt
from align.data.records import content_id
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.policies.base import Capabilities, Failed, Sampling, completion_of
from align.types import Logps
from align.worlds.additions import COMPLETION, Operands, solution_of

_FENCED = re.compile(r"<(request|response) ([0-9a-f]{8})>\n(.*?)\n</\1 \2>", flags=re.DOTALL)
_QUESTION = re.compile(r"(\d+)\+(\d+)\+(\d+)\?", flags=re.ASCII)


@dataclass(frozen=True)
class SumsExpert:
    """Implements `Policy`.

    Attributes:
        nonsense: probability that an answer is no JSON; the next try is drawn anew.
        refusal: probability of a refusal in place of an answer.
    """

    nonsense: float = 0.0
    refusal: float = 0.0

    @property
    def capabilities(self) -> Capabilities:
        """It writes."""
        return Capabilities(logps=False, reproducible=True)

    @property
    def identity(self) -> str:
        """A hash of the attributes."""
        return f"rule:sums-expert-{content_id(asdict(self))}"

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """A report per prompt."""
        return [[self._written(prompt, sample, seed) for sample in range(n)] for prompt in prompts]

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("The rule-based expert of sums scores no token rows.")

    def _written(self, prompt: Prompt, sample: int, seed: int) -> Completion | Failed:
        assert not isinstance(prompt.prompt, str)
        draw = random.Random(
            hashlib.sha256(f"{seed}/{prompt.id}/{sample}/expert".encode()).digest()
        )
        if draw.random() < self.refusal:
            return Failed(prompt, sample, "refused", "by rule")
        parts = {name: text for name, _, text in _FENCED.findall(prompt.prompt[0].content)}
        asked = _QUESTION.fullmatch(parts.get("request", ""))
        if asked is None:
            raise RecipeError("The rule-based expert of sums reads questions like 17+35+28? only.")
        a, b, c = map(int, asked.groups())
        text = json.dumps(report_on((a, b, c), parts["response"]), indent=1)
        if draw.random() < self.nonsense:
            text = text[: len(text) // 2]
        return completion_of(prompt, text, policy=self.identity, sample=sample)


def report_on(operands: Operands, response: str) -> dict[str, Any]:
    """What the expert says about one response, as JSON."""
    right = solution_of(operands).split("\n")
    lines = [line for line in response.split("\n") if line.strip()]
    match = COMPLETION.fullmatch(response)
    if match is None:
        # Not the right shape: the first line becomes the solution, the others go.
        fixed: list[str | None] = ["\n".join(right), *([None] * (len(lines) - 1))]
        return {str(n): _sentence(line, 1, fixed[n]) for n, line in enumerate(lines)}
    left1, right1, sum1, left2, right2, sum2, answer = map(int, match.groups())
    a, b, c = operands
    own_error = (
        (left1, right1) != (a, b) or sum1 != a + b,
        (left2, right2) != (sum1, c) or sum2 != left2 + right2,
        answer != sum2,
    )
    return {
        str(n): _sentence(line, 4 if line == fix else 2 if wrong else 3, fix)
        for n, (line, fix, wrong) in enumerate(zip(lines, right, own_error, strict=True))
    }


def _sentence(line: str, score: int, rewritten: str | None) -> dict[str, Any]:
    kinds = {4: "correct", 3: "reasoning", 2: "reasoning", 1: "language comprehension"}
    reasons = {4: "right", 3: "carries an error on", 2: "a wrong sum", 1: "not three lines"}
    return {
        "sentence": line,
        "score": score,
        "error_type": kinds[score],
        "objects": [],
        "rewritten": rewritten,
        "reason": reasons[score],
    }
