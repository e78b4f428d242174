"""Whether a model that gives probabilities is as often right as it says.

Of each pair the model names a winner with a confidence of 1/2 or more. Pairs are put into bins by
their confidence; in each bin the mean confidence is compared with the share of pairs whose label
agrees with the named winner. The expected calibration error is the mean absolute difference over
all pairs (Guo et al. 2017, arXiv:1706.04599, eq. 3). It is above 0 even of a calibrated model,
because a share of few pairs differs from its expectation by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The pairs whose winner the model names with a confidence in [low, high).

    Attributes:
        low: least confidence, from 1/2 on.
        high: of the last bin 1, which belongs to it.
        n: pairs.
        confidence: mean of what the model says; None where n is 0.
        agreement: mean of what the labels say about the named winners; None where n is 0.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; None becomes null."""
        return asdict(self)


def reliability(difference: Tensor, label: Tensor, bins: int = BINS) -> list[Bin]:
    """The reliability table of P(first wins) = sigmoid(difference).

    Args:
        difference: [N] nats.
        label: [N] in [0, 1], P(first wins) as it was annotated; 1 where the first did win.
        bins: of equal width over [1/2, 1].
    """
    d, q = difference.double(), label.double()
    confidence = torch.sigmoid(d.abs())
    agreement = torch.where(d > 0, q, 1 - q)
    # Where the model names no winner, either one is as good.
    agreement = torch.where(d == 0, torch.full_like(q, 0.5), agreement)
    width = 0.5 / bins
    place = ((confidence - 0.5) / width).long().clamp(0, bins - 1)
    found: list[Bin] = []
    for b in range(bins):
        inside = place == b
        n = int(inside.sum())
        found.append(
            Bin(
                low=0.5 + b * width,
                high=0.5 + (b + 1) * width,
                n=n,
                confidence=float(confidence[inside].mean()) if n else None,
                agreement=float(agreement[inside].mean()) if n else None,
            )
        )
    return found


def calibration_error(table: Sequence[Bin]) -> float | None:
    """The expected calibration error of a table; None where it has no pair."""
    total = sum(one.n for one in table)
    if not total:
        return None
    gaps = [
        one.n * abs(one.agreement - one.confidence)
        for one in table
        if one.agreement is not None and one.confidence is not None
    ]
    return sum(gaps) / total
