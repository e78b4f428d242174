"""How soft the label of a kept pair is: alpha, and preference = 1 - alpha.

UPO, arXiv:2409.11212, prints L = -(1 - alpha) log sigmoid(beta h) - alpha log sigmoid(-beta h) with

    alpha_j = 1 / (P_j + 1),    P_j = (1 - B_j)^mu / sum_k (1 - B_k)^mu

P_j is a probability over the whole data set, so P_j <= 1 and alpha_j >= 1/2: of a thousand pairs,
alpha is about .999, and the loss teaches the reverse of every preference. It cannot be what was
run; the published program does not smooth at all. `printed` is there to show it. What the text
asks for, little smoothing where the estimator is sure, is given by the other forms:

    information   alpha = 0.5 B / log 2                 in [0, 1/2]; the default
    probability   alpha = min(0.5, 1 - P(chosen better))
    odds          alpha = 1 / (P_j / min_k P_k + 1)     in (0, 1/2]

Differs from the paper: the default is `information`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from align_data.uncertainty.settings import Smoothing


def log_weights(information: Sequence[float], mu: float) -> list[float]:
    """mu log(1 - B), so that no power underflows."""
    return [mu * math.log1p(-b) for b in information]


def probabilities(information: Sequence[float], mu: float) -> list[float]:
    """P_j = (1 - B_j)^mu / sum_k (1 - B_k)^mu.

    The paper prints mu as a factor, which would cancel; here it is the exponent.
    """
    logs = log_weights(information, mu)
    top = max(logs, default=0.0)
    powers = [math.exp(value - top) for value in logs]
    total = math.fsum(powers)
    return [power / total for power in powers]


def alphas(
    information: Sequence[float], chosen_better: Sequence[float], smoothing: Smoothing
) -> list[float]:
    """How probable it is taken to be that a pair's label is wrong.

    Args:
        information: B [nats] of every pair that was to be chosen from.
        chosen_better: mean of the passes, of the same pairs.
        smoothing: of the recipe.
    """
    mu = 1.0 if smoothing.mu is None else smoothing.mu
    match smoothing.mode:
        case "none":
            return [0.0 for _ in information]
        case "information":
            return [min(0.5 * b / math.log(2), 0.5) for b in information]
        case "probability":
            return [min(0.5, 1.0 - p) for p in chosen_better]
        case "odds":
            logs = log_weights(information, mu)
            least = min(logs, default=0.0)
            return [1.0 / (math.exp(value - least) + 1.0) for value in logs]
        case "printed":
            return [1.0 / (p + 1.0) for p in probabilities(information, mu)]
