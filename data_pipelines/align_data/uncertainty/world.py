"""Planted noise: an exact judge that now and then misreads a question, and what a filter keeps.

For tests and tiny recipes, where the truth is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from align.data.messages import prompt_id
from align.data.pairs import PreferencePair
from align.data.records import content_id
from align.judges.base import Answer, JudgeFailed, ScoreJudge
from align_data.uncertainty.fitting import response_of
from align_data.uncertainty.select import uniform


class FlippedJudge:
    """Gives 1 - score to all answers of a share of the prompts, always the same ones.

    So each pair of such a prompt has its label the wrong way round. Were single answers turned
    over, most wrong labels would stand on two answers that are equally good.

    Args:
        exact: scores of 0 and 1.
        flips: share of the prompts.
        seed: which ones.
    """

    def __init__(self, exact: ScoreJudge, *, flips: float, seed: int) -> None:
        self.exact = exact
        self.flips = flips
        self.seed = seed
        self.identity = f"flipped:{content_id(exact.identity, flips, seed)}"

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One score, or the reason why there is none, per item in their order."""
        return [
            found if isinstance(found, JudgeFailed) or not self._is_flipped(item) else 1.0 - found
            for item, found in zip(items, self.exact.score(items), strict=True)
        ]

    def _is_flipped(self, item: Answer) -> bool:
        return uniform(self.seed, prompt_id(item.prompt), "flip") <= self.flips


@dataclass(frozen=True)
class Truth:
    """How many pairs have the better response as chosen, by a judge that is never wrong.

    Attributes:
        right: chosen scores higher.
        equal: both score the same.
        wrong: rejected scores higher.
        unknown: the judge gave no score.
    """

    right: int
    equal: int
    wrong: int
    unknown: int

    @property
    def precision(self) -> float | None:
        """Share of right ones among those with scores; None without any."""
        known = self.right + self.equal + self.wrong
        return self.right / known if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "precision": self.precision}


def truth(pairs: Sequence[PreferencePair], exact: ScoreJudge) -> Truth:
    """What `exact` says about the pairs."""
    sides = [response_of(text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    asked = [Answer(pairs[n // 2].prompt, text, str(n)) for n, text in enumerate(sides)]
    scores = exact.score(asked)
    found: Counter[str] = Counter()
    for chosen, rejected in zip(scores[::2], scores[1::2], strict=True):
        if isinstance(chosen, JudgeFailed) or isinstance(rejected, JudgeFailed):
            found["unknown"] += 1
        else:
            found["right" if chosen > rejected else "wrong" if chosen < rejected else "equal"] += 1
    return Truth(found["right"], found["equal"], found["wrong"], found["unknown"])
