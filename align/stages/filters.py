"""Which of a prompt's judged samples are kept, as weights: the filters of PF-PPO.

A reward is most often wrong in the middle of its range, so only its ends are trained on. Of N
samples of one prompt, ranked by reward:

    best_of_n     1 for the best
    best_random   1/2 for the best, 1 / (2 (N - 1)) for each other one
    best_worst    1/2 for the best, 1/2 for the worst

Source: Zhang, Shen et al. 2024, "Policy Filtration for RLHF to Mitigate Noise in Reward Models"
(arXiv:2409.06957). The authors' code draws from the whole buffer with 0.4 for the best and 0.1 for
each other sample, which is best_random for N = 5 alone; here N is what it is for each prompt.

The paper trains single samples. A pair takes two different ones, each with twice its weight as the
probability to be in it: with best_random the best and any other, with best_worst both ends. Twice
the weight of best_of_n is no probability, so it makes no pair.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

Filter: TypeAlias = Literal["best_of_n", "best_random", "best_worst"]
FILTERS: tuple[Filter, ...] = get_args(Filter)


def weights(scores: Sequence[float], rule: Filter) -> tuple[float, ...]:
    """How often each of a prompt's N samples is trained on; they sum to 1.

    Only the order of the scores counts, so a monotone map of the reward changes nothing. Of equal
    ones the earlier sample stands higher. A single sample has weight 1.

    Args:
        scores: [N], in any unit; higher is better.
        rule: of the filter.

    Raises:
        ValueError: there is no score, or one is NaN.
    """
    n = len(scores)
    if not n or any(map(math.isnan, scores)):
        raise ValueError(f"weights needs scores that are numbers, and was given {list(scores)}.")
    ranked = sorted(range(n), key=lambda i: -scores[i])
    best, worst = ranked[0], ranked[-1]
    if rule == "best_of_n" or n == 1:
        return tuple(float(i == best) for i in range(n))
    if rule == "best_worst":
        return tuple(0.5 if i in (best, worst) else 0.0 for i in range(n))
    return tuple(0.5 if i == best else 0.5 / (n - 1) for i in range(n))


def drawn_pair(scores: Sequence[float], rule: Filter, draw: random.Random) -> tuple[int, int]:
    """The best sample and another one, each in the pair with twice its weight as probability.

    Args:
        scores: [N] of N > 1 samples.
        rule: one that keeps more than one of them.
        draw: whose next number is used, whatever the rule.

    Returns:
        Their places, the best one's first.
    """
    kept = list(weights(scores, rule))
    best = max(range(len(scores)), key=scores.__getitem__)
    kept[best] = 0.0
    (other,) = draw.choices(range(len(scores)), kept)
    return best, other
