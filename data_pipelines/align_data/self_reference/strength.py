"""From the rounds of one pair to a decision: which response, how surely, by how much.

The paper's "semantic perplexity" has no published formula. Two estimators stand in for it, each a
choice of ours and named in the row; w1 and w2 are the verdicts for response 1 and 2 in the words of
the round's order, L1 and L2 their lengths in tokens:

    forced_verdict   PPL_k(i) = exp(-(1/Li) sum_t log p(w_i,t | conversation, own answer, critique))
                     s_k = log PPL_k(2) - log PPL_k(1);  s = mean s_k over equal numbers of both
                     orders;  P1 = PPL1^-1 / (PPL1^-1 + PPL2^-1) = sigmoid(s);  margin = |s|
    pooled_feedback  l_k = mean log-prob of a token of the whole critique;  mass_i = (1/R) sum of
                     exp(l_k) over the rounds that choose i;  P1 = mass_1 / (mass_1 + mass_2);
                     margin = |mass_1 - mass_2| / (mass_1 + mass_2)
    votes            P1 = votes_1 / R;  margin = |votes_1 - votes_2| / R

A bias b for the place, added to the log-odds of the first one shown, gives d + b in one order and
d - b in the other: s is d whatever b is. Rounds therefore count in twos, one of each order; where
one of the two has no verdict, neither counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.problems import Reason
from align.judges.base import Side
from align_data.self_reference.annotate import Order
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.verdict import Rule


@dataclass(frozen=True)
class Round:
    """One annotation of a pair of responses, 1 and 2.

    Attributes:
        number: of the round, from 0.
        order: "12" shows response 1 first.
        feedback: the whole critique; "" where there is none.
        verdict: the place that it chooses.
        rule: what the verdict was read from.
        failure: why the round does not count; None where it does.
        mean_logp: of the critique's tokens [nats per token].
        ppl: of the verdicts for response 1 and 2.
    """

    number: int
    order: Order
    feedback: str = ""
    verdict: Side | None = None
    rule: Rule = "none"
    failure: str | None = None
    mean_logp: float | None = None
    ppl: tuple[float, float] | None = None

    @property
    def choice(self) -> int | None:
        """1 or 2, the response that the verdict chooses."""
        if self.verdict is None or self.failure is not None:
            return None
        return 1 if (self.verdict == "first") == (self.order == "12") else 2

    @property
    def log_odds(self) -> float | None:
        """s_k [nats]: above 0 for response 1."""
        return None if self.ppl is None else math.log(self.ppl[1]) - math.log(self.ppl[0])

    @property
    def contradicts_itself(self) -> bool:
        """The verdict is for one response, the log-odds for the other."""
        return (
            self.choice is not None
            and self.log_odds is not None
            and self.log_odds != 0
            and (self.log_odds > 0) != (self.choice == 1)
        )


@dataclass(frozen=True)
class Preferred:
    """The response that is chosen.

    Attributes:
        chosen: 1 or 2.
        preference: P(chosen beats rejected), at least 1/2.
        margin: in the units of the estimator.
        votes: for response 1 and 2.
    """

    chosen: int
    preference: float
    margin: float
    votes: tuple[int, int]


@dataclass(frozen=True)
class Undecided:
    """Why there is no pair."""

    reason: Reason
    detail: str


def decide(rounds: Sequence[Round], settings: SelfReferenceSettings) -> Preferred | Undecided:
    """The decision of all rounds, which come in the order of their numbers, orders in turn."""
    twos = zip(rounds[::2], rounds[1::2], strict=True)
    counted = [one for two in twos if None not in (two[0].choice, two[1].choice) for one in two]
    missing = [one.failure or "no verdict" for one in rounds if one.choice is None]
    if not counted or (missing and settings.decide == "both_orders"):
        return Undecided("failed", f"{len(missing)} of {len(rounds)} rounds: {missing[0]}")
    votes = (sum(one.choice == 1 for one in counted), sum(one.choice == 2 for one in counted))
    leaning = _leaning(counted, votes, settings)
    if settings.decide == "both_orders" and all(votes):
        return Undecided("inconsistent", f"{votes[0]} to {votes[1]} verdicts")
    if settings.decide != "soft" and votes[0] == votes[1]:
        return Undecided("tie", f"{votes[0]} to {votes[1]} verdicts")
    if leaning.margin < settings.min_margin or leaning.towards is None:
        return Undecided("small_margin", f"{leaning.margin:.3g} by {settings.strength}")
    voted = 1 if votes[0] > votes[1] else 2
    if settings.decide != "soft" and leaning.towards != voted:
        detail = f"the verdicts and their strength ({settings.strength}) choose different responses"
        return Undecided("inconsistent", detail)
    return Preferred(leaning.towards, leaning.probability, leaning.margin, votes)


@dataclass(frozen=True)
class _Leaning:
    """The estimator's say: response 1, 2 or None, with P(it beats the other) and the margin."""

    towards: int | None
    probability: float
    margin: float


def _leaning(
    counted: Sequence[Round], votes: tuple[int, int], settings: SelfReferenceSettings
) -> _Leaning:
    match settings.strength:
        case "forced_verdict":
            log_odds = [one.log_odds for one in counted if one.log_odds is not None]
            assert len(log_odds) == len(counted)
            # fsum: the same to the last bit when the two responses change places.
            s = math.fsum(log_odds) / len(counted)
            margin = min(abs(s), settings.margin_max)
            return _Leaning(_side(s), 1.0 / (1.0 + math.exp(-abs(s))), margin)
        case "pooled_feedback":
            mass = [
                math.fsum(math.exp(one.mean_logp or 0.0) for one in counted if one.choice == side)
                for side in (1, 2)
            ]
            assert all(one.mean_logp is not None for one in counted)
        case "votes":
            mass = [float(votes[0]), float(votes[1])]
    apart = mass[0] - mass[1]
    return _Leaning(_side(apart), max(mass) / sum(mass), abs(apart) / sum(mass))


def _side(x: float) -> int | None:
    return None if x == 0 else 1 if x > 0 else 2
