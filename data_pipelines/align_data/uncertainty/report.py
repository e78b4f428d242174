"""What a run of the filter did, in numbers, for the card of its data set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.built import Built, BuiltPair
from align_data.uncertainty.fitting import response_of

BINS = 10


def findings(built: Sequence[Built]) -> dict[str, Any]:
    """JSON-ready findings over everything that `finish` gave.

    `first_wins` and `first_wins_swapped` say how often the response read first wins, with chosen
    first and with rejected first. An estimator that looks at the responses has them near 1 - each
    other; both near 1 or near 0 mean that it knows nothing but the position.
    """
    estimates = [e for one in built for e in one.record.get("estimates", [])]
    kept = [pair for one in built for pair in one.pairs]
    counts: Counter[str] = Counter()
    for one in built:
        counts.update(one.counts)
    passes = counts["passes"]
    swapped_asked = any(e["order"] == "both" for e in estimates)
    return {
        "candidates": sum(one.read for one in built),
        "estimated": len(estimates),
        "agreed": sum(bool(e["agree"]) for e in estimates),
        "kept": len(kept),
        "kept_by_kind": dict(sorted(Counter(pair.pair_kind or "" for pair in kept).items())),
        "dropped": dict(sorted(Counter(r.reason for one in built for r in one.dropped).items())),
        "first_wins": _share(counts["first_wins"], passes),
        "first_wins_swapped": _share(counts["first_wins_swapped"], passes)
        if swapped_asked
        else None,
        "information": _histogram([float(e["bald"]) for e in estimates]),
        "information_kept": _histogram([p.uncertainty for p in kept if p.uncertainty is not None]),
        "margin_kept": _mean([p.margin for p in kept if p.margin is not None]),
        "preference_kept": _mean([p.preference for p in kept if p.preference is not None]),
        "chosen_longer": _share(sum(map(_chosen_is_longer, kept)), len(kept)),
        "readings": counts["readings"],
    }


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What in the findings should make one stop and look, as sentences."""
    told: list[str] = []
    first, swapped = found["first_wins"], found["first_wins_swapped"]
    if first is not None and swapped is not None and abs(first + swapped - 1.0) > 0.3:
        told.append(
            f"The estimator calls the response read first the better one in {first:.0%} of the "
            f"passes, and in {swapped:.0%} once the two have changed places: it looks at the "
            "position. Train it longer or on more labelled pairs."
        )
    b = found["information"]
    if b["n"] and b["max"] < 1e-4:
        told.append(
            "All passes say nearly the same (B < 0.0001 everywhere), so the order by B is rounding "
            "noise: raise estimator.dropout."
        )
    return told


def _histogram(values: Sequence[float]) -> dict[str, Any]:
    """Counts of B in equal bins over [0, log 2]."""
    bins = [0] * BINS
    for value in values:
        bins[min(int(value / math.log(2) * BINS), BINS - 1)] += 1
    return {
        "n": len(values),
        "mean": _mean(values),
        "max": max(values, default=None),
        "bins": bins,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _chosen_is_longer(pair: BuiltPair) -> bool:
    return len(response_of(pair.chosen)) > len(response_of(pair.rejected))
