"""Which of the estimated pairs are reliable enough to be trained on.

UPO, arXiv:2409.11212, "reliable sampling": pairs are drawn with P_j proportional to (1 - B_j)^mu
(`mu`). The published program first drops the pairs on which reward and estimator disagree, and
mixes easy, hard and far ones (`legacy`). Measured on planted noise (the table in this pipeline's
README), agreement does most of the work, and after it the lowest B beats drawing: that is the
default.

Differs from the paper: `agree+topk` (`select: {rule: mu, agreement: ignored}` is the paper's).

A draw's random number belongs to (seed, pair, purpose): it does not depend on the order of the
pairs. Drawing without replacement takes the smallest of -log(u) / weight (Efraimidis and Spirakis
2006, "Weighted random sampling with a reservoir", algorithm A).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from align.data.problems import Reason
from align_data.uncertainty.settings import AnyRule, Legacy, Mu, Top
from align_data.uncertainty.smoothing import log_weights, probabilities

Bucket = Literal["reliable", "easy", "hard", "far"]


@dataclass(frozen=True)
class Row:
    """A candidate pair, as far as the choice looks at it.

    Attributes:
        uid: of the pair; its random numbers come from it.
        prompt: pairs of one prompt share it.
        margin: reward of chosen minus reward of rejected.
        information: B [nats]; None where the estimator was not asked.
        agrees: whether the estimator prefers chosen too; None likewise.
    """

    uid: str
    prompt: str
    margin: float
    information: float | None = None
    agrees: bool | None = None


@dataclass(frozen=True)
class Choice:
    """What became of a row.

    Attributes:
        bucket: why it was kept; None where it was not.
        reason: why it was not.
        detail: likewise, for people.
        weight: P_j M of the rows that were drawn from, 1 on average; None for others.
    """

    bucket: Bucket | None = None
    reason: Reason | None = None
    detail: str = ""
    weight: float | None = None


def uniform(seed: int, uid: str, purpose: str) -> float:
    """A number in (0, 1] that belongs to a pair and a purpose."""
    key = hashlib.sha256(f"{seed}/{uid}/{purpose}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    return 1.0 - float(generator.random())


def drawn(
    uids: Sequence[str], logs: Sequence[float], share: float, *, seed: int, purpose: str
) -> list[str]:
    """A share of `uids` without replacement, in the order they are drawn; half is rounded up.

    Args:
        uids: what is drawn from.
        logs: logarithm of each one's weight; -inf is drawn last.
        share: of them.
        seed: of the draw.
        purpose: another one is another draw.
    """

    def key(place: int) -> tuple[float, str]:
        # log of -log(u) / weight; log(0) where u is 1.
        waiting = -math.log(uniform(seed, uids[place], purpose))
        log_waiting = math.log(waiting) if waiting > 0 else -math.inf
        return (log_waiting - logs[place], uids[place])

    order = sorted(range(len(uids)), key=key)
    return [uids[place] for place in order[: _count(share, len(uids))]]


def select(rows: Sequence[Row], rule: AnyRule, *, seed: int) -> list[Choice]:
    """One choice per row, in their order."""
    match rule:
        case Top():
            return _top(rows, rule)
        case Mu():
            return _mu(rows, rule, seed)
        case Legacy():
            return _legacy(rows, rule, seed)


def eligible(rows: Sequence[Row], rule: AnyRule) -> list[int]:
    """Places of the rows that the rule chooses from by B."""
    ignored = isinstance(rule, Mu) and rule.agreement == "ignored"
    return [
        place
        for place, row in enumerate(rows)
        if row.information is not None and (ignored or row.agrees)
    ]


def _top(rows: Sequence[Row], rule: Top) -> list[Choice]:
    def sureness(place: int) -> tuple[float, str]:
        information = rows[place].information
        assert information is not None
        return (information, rows[place].uid)

    pool = eligible(rows, rule)
    kept = set(sorted(pool, key=sureness)[: _count(rule.keep, len(pool))])
    detail = f"not among the {rule.keep:.0%} of the agreed pairs with the least information"
    return _chosen(rows, rule, kept.__contains__, "uncertain", detail)


def _mu(rows: Sequence[Row], rule: Mu, seed: int) -> list[Choice]:
    pool = eligible(rows, rule)
    uids = [rows[place].uid for place in pool]
    logs = log_weights(_information(rows, pool), rule.mu)
    kept = set(drawn(uids, logs, rule.keep, seed=seed, purpose="mu"))
    detail = f"not among the {rule.keep:.0%} that were drawn"
    return _chosen(rows, rule, lambda place: rows[place].uid in kept, "not_drawn", detail, rule.mu)


def _chosen(
    rows: Sequence[Row],
    rule: AnyRule,
    is_kept: Callable[[int], bool],
    reason: Reason,
    detail: str,
    mu: float = 1.0,
) -> list[Choice]:
    weights = _weights(rows, rule, mu)
    choices: list[Choice] = []
    for place, row in enumerate(rows):
        if place not in weights:
            choices.append(_outside(row))
        elif is_kept(place):
            choices.append(Choice(bucket="reliable", weight=weights[place]))
        else:
            choices.append(Choice(reason=reason, detail=detail, weight=weights[place]))
    return choices


def _legacy(rows: Sequence[Row], rule: Legacy, seed: int) -> list[Choice]:
    pool = eligible(rows, rule)
    weights = _weights(rows, rule, 1.0)
    uids = [rows[place].uid for place in pool]
    information = _information(rows, pool)
    sure = log_weights(information, 1.0)
    unsure = [math.log(b) if b > 0 else -math.inf for b in information]
    easy = drawn(uids, sure, rule.easy, seed=seed, purpose="easy")
    hard = drawn(uids, unsure, rule.hard, seed=seed, purpose="hard")
    hard = drawn(hard, [0.0] * len(hard), rule.hard_kept, seed=seed, purpose="hard-kept")
    widest: dict[str, Row] = {}
    for row in rows:
        best = widest.get(row.prompt)
        if best is None or (row.margin, best.uid) > (best.margin, row.uid):
            widest[row.prompt] = row
    prompts = sorted(widest)
    far = drawn(prompts, [0.0] * len(prompts), rule.far, seed=seed, purpose="far")
    bucket: dict[str, Bucket] = {widest[prompt].uid: "far" for prompt in far}
    bucket |= dict.fromkeys(hard, "hard")
    bucket |= dict.fromkeys(easy, "easy")
    return [
        Choice(bucket=bucket[row.uid], weight=weights.get(place))
        if row.uid in bucket
        else Choice(
            reason="not_drawn",
            detail="neither among the easy, the hard nor the far pairs that were drawn",
            weight=weights[place],
        )
        if place in weights
        else _outside(row)
        for place, row in enumerate(rows)
    ]


def _outside(row: Row) -> Choice:
    if row.information is None:
        return Choice(reason="not_drawn", detail="not among the pairs that were estimated")
    return Choice(reason="disagreement", detail="most passes prefer the other response")


def _weights(rows: Sequence[Row], rule: AnyRule, mu: float) -> dict[int, float]:
    pool = eligible(rows, rule)
    found = probabilities(_information(rows, pool), mu)
    return {place: p * len(pool) for place, p in zip(pool, found, strict=True)}


def _information(rows: Sequence[Row], pool: Sequence[int]) -> list[float]:
    found = [rows[place].information for place in pool]
    return [b for b in found if b is not None]


def _count(share: float, n: int) -> int:
    return math.floor(share * n + 0.5)
