"""A rule-based annotator for the world `sums`: for tests, and for recipes that run in seconds.

It answers, criticises and chooses by rules, with the faults that real annotators have, each of a
stated size: slips, a bias for the place, nonsense, refusals. As a policy it writes; as a writer of
bytes it gives the log-probs of what it writes, so both estimators of strength can be tried on it.

The critique states the annotator's belief d [nats], the log-odds that A is better. It chooses A
where d + position_bias > 0, and gives the verdict A the probability sigmoid(d + position_bias).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from align.data.completions import Completion
from align.data.messages import Message, Text
from align.data.prompts import Prompt
from align.data.records import content_id
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.policies.base import Capabilities, Failed, Sampling, completion_of
from align.policies.writer import Draw, Drawn, NoAnswer, OptionMass, Stem
from align.types import Logps
from align.worlds.additions import Operands, judge, solution_of
from align_data.self_reference.annotate import LABELS, verdict_line

_QUESTION = re.compile(r"(\d+)\+(\d+)\+(\d+)\?", flags=re.ASCII)
_ASKED = re.compile(r"<answer (A|B) ([0-9a-f]{8})>\n(.*?)\n</answer \1 \2>", flags=re.DOTALL)
_BELIEF = re.compile(r"My log-odds for A: ([+-][0-9.]+)\.")
END_ID = 256
CONTEXT = 2**20
NONSENSE = "The weather is fine today, and the numbers are numbers."


@dataclass(frozen=True)
class SumsAnnotator:
    """Implements `Policy` and `Writer`.

    Attributes:
        confidence: nats of belief per line that one answer has right and the other has not.
        slip: probability that a critique gets the difference the wrong way round.
        position_bias: nats added to the belief in the answer that is shown first.
        says_first: probability that a critique ends with a verdict for the first one, whatever it
            said before.
        nonsense: probability of a critique without a verdict.
        refusal: probability of a refusal in place of a critique.
        copies_verdict: share of the probability that goes to A and B where a verdict is due.
    """

    confidence: float = 1.5
    slip: float = 0.1
    position_bias: float = 0.5
    says_first: float = 0.0
    nonsense: float = 0.0
    refusal: float = 0.0
    copies_verdict: float = 0.98

    @property
    def capabilities(self) -> Capabilities:
        """It writes; log-probs come by `score`."""
        return Capabilities(logps=False, reproducible=True)

    @property
    def identity(self) -> str:
        """A hash of the attributes."""
        return f"rule:sums-annotator-{content_id(asdict(self))}"

    @property
    def end_ids(self) -> frozenset[int]:
        """One, behind the bytes."""
        return frozenset({END_ID})

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """Own answers to plain questions, critiques where two answers are to be compared."""
        return [[self._written(prompt, sample, seed) for sample in range(n)] for prompt in prompts]

    def _written(self, prompt: Prompt, sample: int, seed: int) -> Completion | Failed:
        assert not isinstance(prompt.prompt, str)
        draw = random.Random(
            hashlib.sha256(f"{seed}/{prompt.id}/{sample}/annotator".encode()).digest()
        )
        asked = _ASKED.findall(prompt.prompt[-1].content)
        operands = _operands(prompt.prompt)
        if not asked:
            text = solution_of(operands)
        elif draw.random() < self.refusal:
            return Failed(prompt, sample, "refused", "by rule")
        elif draw.random() < self.nonsense:
            text = NONSENSE
        else:
            code = asked[0][1]
            text = self._critique(operands, [answer for _, _, answer in asked], code, draw)
        return completion_of(prompt, text, policy=self.identity, sample=sample)

    def _critique(
        self, operands: Operands, answers: Sequence[str], code: str, draw: random.Random
    ) -> str:
        a, b = (quality(operands, answer) for answer in answers)
        slips = draw.random() < self.slip
        belief = (b - a if slips else a - b) * self.confidence
        says_first = draw.random() < self.says_first
        leaning = belief + self.position_bias
        # Nothing speaks for either: a coin, not a place.
        prefers_first = leaning > 0 or (leaning == 0 and draw.random() < 0.5)
        label = LABELS[0] if says_first or prefers_first else LABELS[1]
        return f"I compared line by line. My log-odds for A: {belief:+.6f}.\n" + verdict_line(
            code, label
        )

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        """Bytes."""
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
        return tuple("".join(f"[{m.role}]\n{m.content}\n" for m in turns).encode())

    def answer_ids(self, prompt: Text, answer: str) -> tuple[int, ...]:
        """Bytes and the end token."""
        return (*answer.encode(), END_ID)

    def text(self, ids: Sequence[int], behind: int) -> str:
        """The bytes as text."""
        return bytes(i for i in ids if i != END_ID).decode(errors="replace")

    def room(self, stem: Stem) -> int:
        """Plenty."""
        return CONTEXT - len(stem.prompt_ids) - len(stem.prefix_ids)

    def draw(self, requests: Sequence[Draw], seed: int) -> list[list[Drawn] | NoAnswer]:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("The rule-based annotator of sums continues no beginnings.")

    def option_mass(
        self, stems: Sequence[Stem], options: Mapping[str, Sequence[str]]
    ) -> list[OptionMass | NoAnswer]:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("The rule-based annotator of sums reads no options.")

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("The rule-based annotator of sums scores no token rows.")

    def score(
        self, requests: Sequence[tuple[Stem, tuple[int, ...]]]
    ) -> list[tuple[float, ...] | NoAnswer]:
        """A label behind a critique by its belief; the bytes of a text the surer the belief is."""
        return [self._logps(self.text(stem.prefix_ids, 0), ids) for stem, ids in requests]

    def _logps(self, critique: str, ids: tuple[int, ...]) -> tuple[float, ...]:
        text = self.text(ids, 0)
        belief = _BELIEF.search(critique + text)
        if text not in LABELS:
            surprise = 1.0 / (1.0 + abs(float(belief[1]))) if belief else 3.0
            return (-surprise,) * len(ids)
        if belief is None:
            # Behind nonsense a verdict is as unlikely as anything else.
            return (math.log(0.01),)
        leaning = float(belief[1]) + self.position_bias
        own = leaning if text == LABELS[0] else -leaning
        return (math.log(self.copies_verdict) - math.log1p(math.exp(-own)),)


def quality(operands: Operands, answer: str) -> int:
    """0 for what is not three lines of the right shape, else 1 and 1 per line that is right."""
    verdict = judge(operands, answer)
    if verdict.steps_right is None:
        return 0
    return 1 + sum(verdict.steps_right) + verdict.right


def _operands(turns: Sequence[Message]) -> Operands:
    for turn in turns:
        match = _QUESTION.search(turn.content)
        if match:
            a, b, c = map(int, match.groups())
            return a, b, c
    raise RecipeError("The rule-based annotator of sums reads questions like 17+35+28? only.")
