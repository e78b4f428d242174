"""How well a judge's numbers say what is right: R^2, over all samples and behind each filter.

PF-PPO chooses its filter by the coefficient of determination between the rewards and the actual
scores of the samples that a filter keeps (arXiv:2409.06957). Right or wrong is one bit, so samples
are put into bins by the rank of their reward, and a line is fitted through the bins' means. The
number of bins is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from align.data.completions import JudgedPrompt
from align.judges.base import Answer
from align.registry import WORLD
from align.stages.filters import FILTERS, weights
from align.worlds import world

BINS = 10
# A line through two points fits any two.
FEWEST_BINS = 3

# Reward, whether it is right (1 or 0), weight.
Sample: TypeAlias = tuple[float, float, float]
# Of one prompt's samples: rewards, and whether they are right.
Group: TypeAlias = tuple[Sequence[float], Sequence[float]]


def reliability(groups: Sequence[Group]) -> dict[str, float]:
    """R^2 of the reward over all samples (`r2_all`) and behind each filter (`r2_best_random`, ...).

    One that is not defined is left out, see `r_squared`.

    Args:
        groups: one per prompt.
    """
    every = [(r, c, 1.0) for rewards, right in groups for r, c in zip(rewards, right, strict=True)]
    found = {"r2_all": r_squared(every)}
    for rule in FILTERS:
        kept = [
            sample
            for rewards, right in groups
            for sample in zip(rewards, right, weights(rewards, rule), strict=True)
        ]
        found[f"r2_{rule}"] = r_squared(kept)
    return {name: value for name, value in found.items() if value is not None}


def r_squared(samples: Sequence[Sample]) -> float | None:
    """Of the line through the bins' means: 1 where the reward says how often answers are right.

    Samples are cut by the rank of their reward into `BINS` bins of equal weight; equal rewards
    stay together. Bins count by their weight.

    Returns:
        None with fewer than `FEWEST_BINS` bins, or where right answers are equally frequent in all.
    """
    points = list(_bins([sample for sample in samples if sample[2] > 0]))
    if len(points) < FEWEST_BINS:
        return None
    total = sum(w for _, _, w in points)
    x, y = (sum(point[i] * point[2] for point in points) / total for i in (0, 1))
    xx = sum(w * (a - x) ** 2 for a, _, w in points)
    yy = sum(w * (b - y) ** 2 for _, b, w in points)
    xy = sum(w * (a - x) * (b - y) for a, b, w in points)
    return None if yy == 0 else xy * xy / (xx * yy)


def _bins(samples: Sequence[Sample]) -> Iterator[Sample]:
    """(mean reward, share that is right, weight) of every bin that holds something."""
    total = sum(w for _, _, w in samples)
    before = 0.0
    placed: list[tuple[int, Sample]] = []
    ordered = sorted(samples, key=lambda sample: sample[0])
    for _, equal in groupby(ordered, key=lambda sample: sample[0]):
        together = list(equal)
        weight = sum(w for _, _, w in together)
        # The middle of equal rewards decides.
        place = int((before + weight / 2) / total * BINS)
        placed += [(place, sample) for sample in together]
        before += weight
    for _, inside in groupby(placed, key=lambda item: item[0]):
        of_bin = [sample for _, sample in inside]
        weight = sum(w for _, _, w in of_bin)
        reward, right = (sum(s[i] * s[2] for s in of_bin) / weight for i in (0, 1))
        yield reward, right, weight


def known_groups(
    judged: Sequence[JudgedPrompt], numbers: Sequence[Sequence[float | None]], source: str
) -> list[Group]:
    """Rewards and right answers of every prompt, where the source of the prompts knows them.

    Args:
        judged: prompts with their completions.
        numbers: the reward of each completion; one without takes no part.
        source: of the prompts; only a world that scores its answers knows what is right.

    Returns:
        Nothing where it does not.
    """
    if not source.startswith(WORLD) or world(source).judged_by != "scores":
        return []
    exact: Any = world(source).judge()
    groups: list[Group] = []
    for row, of_row in zip(judged, numbers, strict=True):
        found = exact.score([Answer(row.prompt, text, row.source) for text in row.completions])
        known = [
            (reward, right)
            for reward, right in zip(of_row, found, strict=True)
            if reward is not None and isinstance(right, float)
        ]
        if known:
            groups.append(([reward for reward, _ in known], [right for _, right in known]))
    return groups
