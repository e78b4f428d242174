"""How many of a round's prompts each source gets: a bandit over what is still learned from them.

    learnability   L_d = mean |A| over the last `window` completions of source d
    score          U_d = L_d + sqrt(2 ln(N + 1) / (n_d + 1))
    share          P_d = exp(U_d / temperature) / sum over e of exp(U_e / temperature)

n_d are the completions of source d that were drawn so far, those that gave no score included (else
a source that none can be scored of would be asked for ever); N are those of all sources; A is the
advantage of GRPO, (r - mean r) / std r over the completions of one prompt, and 0 where all are
equal: what is always right and what is always wrong teaches nothing. Before anything was drawn all
shares are equal.

Source: Wang et al. 2025, "DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM
Post-training" (arXiv:2504.09710), whose window is 300 and temperature 0.1. Differs from the paper:
prompts are allotted by the shares, rounded to whole ones, and not drawn one by one; the standard
deviation is over the completions themselves (no Bessel correction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Literal, TypeAlias

from pydantic import Field

from align.node import Node

# What rounds hand on, JSON-ready: source -> {"seen", "window", "place"}.
Arms: TypeAlias = Mapping[str, Mapping[str, Any]]
UNSEEN: Mapping[str, Any] = {"seen": 0, "window": [], "place": 0}


class Curriculum(Node):
    """Shares of the prompts' sources that follow what is still learned from each (DUMP)."""

    name: Literal["dump"]
    """The rule: dump."""
    column: str | None = Field(default=None, min_length=1)
    """Column of the rows that names their source; null takes the file that a row is from."""
    window: int = Field(default=300, ge=1)
    """Of each source, so many of its last completions say how much is learned from it."""
    temperature: float = Field(default=0.1, gt=0)
    """The lower, the more of a round goes to the source with the highest score."""


def learnability(arm: Mapping[str, Any]) -> float:
    """Mean |advantage| in a source's window; 0 where nothing was scored yet."""
    return fmean(arm["window"]) if arm["window"] else 0.0


def shares(arms: Arms, temperature: float) -> dict[str, float]:
    """Of every source; they sum to 1."""
    every = sum(arm["seen"] for arm in arms.values())
    scores = {
        name: learnability(arm) + math.sqrt(2 * math.log(every + 1) / (arm["seen"] + 1))
        for name, arm in arms.items()
    }
    highest = max(scores.values())
    raised = {name: math.exp((score - highest) / temperature) for name, score in scores.items()}
    total = sum(raised.values())
    return {name: value / total for name, value in raised.items()}


def allotted(share: Mapping[str, float], sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Prompts of every source: the shares of `wanted` in whole numbers, by largest remainders.

    What a source does not have goes to the others, by their shares.

    Args:
        share: of every source.
        sizes: how many prompts it has.
        wanted: in all; fewer where there are not so many.
    """
    found = dict.fromkeys(share, 0)
    while (left := wanted - sum(found.values())) > 0:
        free = {name: share[name] for name in share if found[name] < sizes[name]}
        if not free:
            break
        total = sum(free.values())
        # Shares may be 0 to the last bit.
        quota = {n: left * (p / total if total else 1 / len(free)) for n, p in free.items()}
        whole = {name: math.floor(value) for name, value in quota.items()}
        by_remainder = sorted(free, key=lambda name: whole[name] - quota[name])
        for name in by_remainder[: left - sum(whole.values())]:
            whole[name] += 1
        for name, more in whole.items():
            found[name] = min(found[name] + more, sizes[name])
    return found


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of the completions of one prompt; none where there are fewer than two."""
    if len(rewards) < 2:
        return []
    middle, spread = fmean(rewards), pstdev(rewards)
    return [(reward - middle) / spread if spread else 0.0 for reward in rewards]


def folded(
    arms: Arms, drawn: Mapping[str, int], found: Mapping[str, Sequence[float]], window: int
) -> dict[str, Any]:
    """The sources behind a round.

    Args:
        arms: as they were.
        drawn: completions of the round by source.
        found: advantages of the round's completions by source, in the order of the prompts.
        window: how many of the last ones are kept.
    """
    return {
        name: {
            **arm,
            "seen": arm["seen"] + drawn.get(name, 0),
            "window": [*arm["window"], *(abs(a) for a in found.get(name, ()))][-window:],
        }
        for name, arm in arms.items()
    }
