"""What T passes of an estimator say about a pair: mutual information, agreement.

Houlsby et al. 2011, arXiv:1112.5745, eq. 1 (BALD); Gal and Ghahramani 2016, arXiv:1506.02142 (the
passes); UPO, arXiv:2409.11212. A pass gives p_t = P(chosen is better); the other class has 1 - p_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["both", "chosen_first"]


def entropy(p: float) -> float:
    """Entropy [nats] of a coin with P(heads) = p; 0 where it is certain."""
    return -sum(q * math.log(q) for q in (p, 1.0 - p) if q > 0.0)


def mutual_information(passes: Sequence[float]) -> float:
    """B = H(mean p_t) - mean H(p_t) [nats], between the verdict and which network was drawn.

    In [0, log 2]: 0 where the passes are equal, log 2 where half of them are certain of each side.

    Args:
        passes: P(chosen is better), T of them, 1 or more.
    """
    if not passes:
        raise ValueError("mutual_information needs at least one pass.")
    t = len(passes)
    # fsum, because B is a small difference of larger numbers.
    mean = math.fsum(passes) / t
    return max(entropy(mean) - math.fsum(map(entropy, passes)) / t, 0.0)


@dataclass(frozen=True)
class Estimate:
    """All that the estimator said about one pair.

    Attributes:
        passes: P(chosen is better) per pass, averaged over the orders where there are two.
        order: in which the responses were read.
        straight: passes in which the first response read won, chosen read first.
        swapped: likewise with rejected read first; None where that was not asked.
    """

    passes: tuple[float, ...]
    order: Order
    straight: int
    swapped: int | None = None

    @property
    def mean(self) -> float:
        """P(chosen is better) over all passes."""
        return math.fsum(self.passes) / len(self.passes)

    @property
    def variance(self) -> float:
        """Of the passes, divided by T."""
        mean = self.mean
        return math.fsum((p - mean) ** 2 for p in self.passes) / len(self.passes)

    @property
    def information(self) -> float:
        """B [nats], in [0, log 2]."""
        return mutual_information(self.passes)

    @property
    def agrees(self) -> bool:
        """Whether more passes call chosen better than call rejected better."""
        return sum((p > 0.5) - (p < 0.5) for p in self.passes) > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; `bald` can be computed again from `p_T`."""
        mean, variance = self.mean, self.variance
        return {
            "T": len(self.passes),
            "p_bar": [mean, 1.0 - mean],
            "p_var": [variance, variance],
            "p_T": list(self.passes),
            "bald": self.information,
            "majority": 0 if self.agrees else 1,
            "agree": self.agrees,
            "order": self.order,
        }


def estimate_of(straight: Sequence[float], swapped: Sequence[float] | None) -> Estimate:
    """An estimate from P(first response read is better) per pass.

    Args:
        straight: chosen read first.
        swapped: rejected read first, by the same networks; None where that was not asked.
    """
    firsts = sum(p > 0.5 for p in straight)
    if swapped is None:
        return Estimate(tuple(straight), "chosen_first", firsts)
    both = tuple((p + (1.0 - q)) / 2 for p, q in zip(straight, swapped, strict=True))
    return Estimate(both, "both", firsts, sum(q > 0.5 for q in swapped))
