"""Which two responses of a prompt make a pair, by their rewards.

Paper (arXiv:2409.11212): one of the upper and one of the lower half, at most 9 pairs of 6
responses. Published program: any two of the best two and the worst two, at most 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Candidate:
    """Two responses by their numbers.

    Attributes:
        chosen: the one with the higher reward, or where both have the same the earlier one.
        rejected: the other.
        rank_chosen: place by reward, 0 the best; equal rewards in the order of the responses.
        rank_rejected: likewise.
        margin: difference of the rewards, 0 or more.
    """

    chosen: int
    rejected: int
    rank_chosen: int
    rank_rejected: int
    margin: float


def candidate_pairs(
    rewards: Sequence[float | None], rule: Literal["halves", "extremes"]
) -> list[Candidate]:
    """Candidates in the order of their ranks; those with a margin of 0 are ties.

    Of an odd number of responses, `halves` leaves the one in the middle out.

    Args:
        rewards: one per response; None where there is none.
        rule: of the recipe.
    """
    known = [(reward, place) for place, reward in enumerate(rewards) if reward is not None]
    ranked = sorted(known, key=lambda found: (-found[0], found[1]))
    n = len(ranked)
    if rule == "halves":
        places = [(i, j) for i in range(n // 2) for j in range(n - n // 2, n)]
    else:
        kept = [*range(2), *range(n - 2, n)] if n > 4 else [*range(n)]
        places = [(i, j) for a, i in enumerate(kept) for j in kept[a + 1 :]]
    return [
        Candidate(ranked[i][1], ranked[j][1], i, j, ranked[i][0] - ranked[j][0]) for i, j in places
    ]
