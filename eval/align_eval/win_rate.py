"""Judged comparison of two models or runs: both orders, ties and failures apart, with intervals.

The judge is any `PairJudge`; a language model is asked in both orders, and a verdict that changes
with the order is a tie (`align.judges.pairwise_llm`). A comparison without a verdict is counted by
its reason and enters no number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from align.data.messages import Text, prompt_id
from align.errors import DataError
from align.judges.base import (
    Comparison,
    JudgeFailed,
    PairJudge,
    Prefers,
    Refused,
    Tie,
    Verdict,
    probability,
)
from align_eval.bradley_terry import Outcome


@dataclass(frozen=True)
class LengthBias:
    """How the judge's preference goes with length, in characters.

    Attributes:
        mean_difference: of the lengths, first minus second, over judged comparisons.
        longer_wins: share of the untied comparisons of unequal length that the longer one won.
        n: how many those are.
        correlation: of the score with the difference of the lengths; None where one of the two is
            constant.
        when_longer: win rate of the first where it is the longer one; None where it never is.
        when_shorter: the same where it is the shorter one.
    """

    mean_difference: float | None
    longer_wins: float | None
    n: int
    correlation: float | None
    when_longer: float | None
    when_shorter: float | None


@dataclass(frozen=True)
class WinRate:
    """How often the first of two models wins.

    Attributes:
        win_rate: (wins + ties / 2) / judged, or the mean of P(first wins) where the judge says it;
            None where nothing was judged.
        standard_error: sample deviation over sqrt(judged).
        low: end of the 95 % interval, from the bootstrap over comparisons.
        high: the other end.
        wins: of the first model.
        losses: of the first model.
        ties: neither, or the two orders of asking disagree.
        n: comparisons asked; judged + failed.
        judged: with a verdict.
        failed: without one.
        reasons: failures by reason.
        length: length bias.
    """

    win_rate: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    wins: int
    losses: int
    ties: int
    n: int
    judged: int
    failed: int
    reasons: Mapping[str, int]
    length: LengthBias

    def to_json(self) -> dict[str, Any]:
        """Plain values; None becomes null."""
        return {**asdict(self), "reasons": dict(self.reasons)}


@dataclass(frozen=True)
class Difference:
    """Two runs against the same opponent on the same prompts.

    Attributes:
        difference: win rate of the first run minus the second's, on the prompts judged for both.
        low: end of the 95 % interval of the paired bootstrap.
        high: the other end.
        p_value: two-sided share of resamples on the other side of zero.
        n: prompts judged for both.
        n_left_out: prompts that only one of the two was judged on.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    n_left_out: int

    def to_json(self) -> dict[str, float | int]:
        """Plain values."""
        return asdict(self)


def comparisons(
    prompts: Mapping[str, Text], first: Mapping[str, str], second: Mapping[str, str]
) -> list[Comparison]:
    """One comparison per prompt, in the order of the prompts; all three are joined by id.

    Raises:
        DataError: a completion of a prompt is missing, or one belongs to no prompt.
    """
    for name, texts in (("first", first), ("second", second)):
        missing, foreign = set(prompts) - set(texts), set(texts) - set(prompts)
        if missing or foreign:
            raise DataError(
                f"The completions of the {name} model do not belong to these prompts: "
                f"{len(missing)} are missing, {len(foreign)} belong to none. Give both models "
                "completions of the same prompts."
            )
    return [Comparison(prompt, first[key], second[key], id=key) for key, prompt in prompts.items()]


def by_content(rows: Sequence[tuple[Text, str]]) -> dict[str, tuple[Text, str]]:
    """Rows (prompt, completion) by the prompt's own id, so that two files join in any order.

    Raises:
        DataError: a prompt occurs twice.
    """
    found: dict[str, tuple[Text, str]] = {}
    for number, (prompt, completion) in enumerate(rows, start=1):
        key = prompt_id(prompt)
        if key in found:
            raise DataError(
                f"Row {number} has the prompt of an earlier row, so the two cannot be told apart. "
                "Leave one of them out."
            )
        found[key] = (prompt, completion)
    return found


def compare(
    judge: PairJudge, items: Sequence[Comparison], *, seed: int = 0, resamples: int = 1000
) -> WinRate:
    """Asks the judge and counts.

    Raises:
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    return win_rate(items, judge.compare(items), seed=seed, resamples=resamples)


def win_rate(
    items: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> WinRate:
    """The first model's win rate from verdicts, one per item in their order."""
    judged: list[tuple[Comparison, float]] = []
    reasons: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for item, verdict in zip(items, verdicts, strict=True):
        value = probability(verdict)
        match verdict:
            case Prefers(which=which):
                kinds[which] += 1
            case Tie():
                kinds["tie"] += 1
            case Refused():
                reasons["refused"] += 1
            case JudgeFailed(reason=reason):
                reasons[reason] += 1
        if value is not None:
            judged.append((item, value))
    scores = np.array([value for _, value in judged])
    n = len(scores)
    low, high = _interval(scores, seed, resamples)
    return WinRate(
        win_rate=float(scores.mean()) if n else None,
        standard_error=float(scores.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        low=low,
        high=high,
        wins=kinds["first"],
        losses=kinds["second"],
        ties=kinds["tie"],
        n=len(items),
        judged=n,
        failed=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        length=length_bias(judged),
    )


def _interval(scores: np.ndarray, seed: int, resamples: int) -> tuple[float | None, float | None]:
    if len(scores) < 2:
        return None, None
    draw = np.random.Generator(np.random.Philox(seed))
    means = [scores[draw.integers(len(scores), size=len(scores))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def length_bias(judged: Sequence[tuple[Comparison, float]]) -> LengthBias:
    """What the verdicts have to do with length; `judged` holds (comparison, P(first wins))."""
    if not judged:
        return LengthBias(None, None, 0, None, None, None)
    differences = np.array([len(item.first) - len(item.second) for item, _ in judged], float)
    scores = np.array([score for _, score in judged])
    decided = (differences != 0) & (scores != 0.5)
    longer_won = (differences > 0) == (scores > 0.5)
    constant = differences.std() == 0 or scores.std() == 0
    return LengthBias(
        mean_difference=float(differences.mean()),
        longer_wins=float(longer_won[decided].mean()) if decided.any() else None,
        n=int(decided.sum()),
        correlation=None if constant else float(np.corrcoef(differences, scores)[0, 1]),
        when_longer=float(scores[differences > 0].mean()) if (differences > 0).any() else None,
        when_shorter=float(scores[differences < 0].mean()) if (differences < 0).any() else None,
    )


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int, resamples: int = 10000
) -> Difference:
    """Paired bootstrap of two runs against one opponent; both map prompt id -> P(run wins).

    Raises:
        DataError: fewer than two prompts were judged for both.
    """
    common = sorted(set(first) & set(second))
    if len(common) < 2:
        raise DataError(
            f"The two runs share {len(common)} judged prompts, and a paired comparison needs two "
            "at least. Judge both on the same prompts."
        )
    gaps = np.array([first[key] - second[key] for key in common])
    draw = np.random.Generator(np.random.Philox(seed))
    means = np.array(
        [gaps[draw.integers(len(gaps), size=len(gaps))].mean() for _ in range(resamples)]
    )
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    # The observed sample counts as one resample, so that p is never 0.
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Difference(
        difference=float(gaps.mean()),
        low=low,
        high=high,
        p_value=min(1.0, 2 * (side + 1) / (resamples + 1)),
        n=len(common),
        n_left_out=len(set(first) ^ set(second)),
    )


def outcomes_of(
    first: str, second: str, items: Sequence[Comparison], verdicts: Sequence[Verdict]
) -> list[Outcome]:
    """The judged comparisons of two named models as outcomes for `rank`."""
    return [
        Outcome(first, second, value, item.id)
        for item, verdict in zip(items, verdicts, strict=True)
        if (value := probability(verdict)) is not None
    ]
