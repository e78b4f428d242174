"""Strengths of several models from pairwise outcomes, with or without further features.

P(first beats second) = sigmoid(strength first - strength second + features . coefficients), by
maximum likelihood; a tie is half a win for both. Rows may be repeated or carry a weight.

Sources: R. A. Bradley and M. E. Terry, Biometrika 39 (1952) 324; D. R. Hunter, Ann. Statist. 32
(2004) 384, for when the maximum exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError, NumericalError

Floats = NDArray[np.float64]
# A penalty of this much times the squared coefficients keeps a model that always wins at a finite
# strength; it moves a win rate that has a maximum by less than 1e-8.
RIDGE = 1e-8
STEPS = 200


@dataclass(frozen=True)
class Outcome:
    """One comparison of two models.

    Attributes:
        first: name of a model.
        second: name of another one.
        score: 1.0 where first won, 0.0 where second did, 0.5 for a tie.
        cluster: what the comparison is about; comparisons of one cluster are not independent.
    """

    first: str
    second: str
    score: float
    cluster: str


def logistic(design: Floats, outcomes: Floats, weights: Floats | None = None) -> Floats:
    """Coefficients [F] of a logistic regression without intercept, by Newton's method.

    Args:
        design: [N, F].
        outcomes: [N] in [0, 1].
        weights: [N] >= 0, or None for ones.

    Raises:
        NumericalError: a value is not finite, or no maximum was found.
    """
    if not (np.isfinite(design).all() and np.isfinite(outcomes).all()):
        raise NumericalError(
            "A pairwise model cannot be fitted to values that are NaN or infinite. Look at the "
            "outcomes and at the style counts of the answers."
        )
    w = np.ones(len(outcomes)) if weights is None else weights

    def value(coefficients: Floats) -> float:
        z = design @ coefficients
        fit = w @ (np.logaddexp(0.0, z) - outcomes * z)
        return float(fit + RIDGE / 2 * coefficients @ coefficients)

    x = np.zeros(design.shape[1])
    now = value(x)
    for _ in range(STEPS):
        p = sigmoid(design @ x)
        gradient = design.T @ (w * (p - outcomes)) + RIDGE * x
        curvature = (design * (w * p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(curvature + RIDGE * np.eye(len(x)), gradient)
        # Newton's decrement: twice what the step can still gain.
        if gradient @ step < 1e-14:
            return x
        size = 1.0
        while (then := value(x - size * step)) > now and size > 1e-8:
            size /= 2
        if then >= now:
            return x
        x, now = x - size * step, then
    raise NumericalError(
        f"The pairwise model found no maximum in {STEPS} steps on {len(outcomes)} outcomes. Look "
        "for a model that nearly always wins or loses, or leave style control out."
    )


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + exp(-z)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -z))


def design_of(outcomes: Sequence[Outcome], baseline: str) -> tuple[Floats, list[str]]:
    """[N, M] with +1 for the first and -1 for the second model, and the M names.

    The baseline has no column: its strength is 0.

    Raises:
        DataError: the baseline does not occur, or a model is joined to it by no chain of
            comparisons.
    """
    _check_connected(outcomes, baseline)
    names = sorted({name for o in outcomes for name in (o.first, o.second)} - {baseline})
    column = {name: index for index, name in enumerate(names)}
    design = np.zeros((len(outcomes), len(names)))
    for row, outcome in enumerate(outcomes):
        for name, sign in ((outcome.first, 1.0), (outcome.second, -1.0)):
            if name != baseline:
                design[row, column[name]] += sign
    return design, names


def _check_connected(outcomes: Sequence[Outcome], baseline: str) -> None:
    neighbours: dict[str, set[str]] = {}
    for outcome in outcomes:
        neighbours.setdefault(outcome.first, set()).add(outcome.second)
        neighbours.setdefault(outcome.second, set()).add(outcome.first)
    if baseline not in neighbours:
        raise DataError(
            f"No comparison names the baseline {baseline!r}; the models are "
            f"{', '.join(sorted(neighbours)) or 'none'}. Name one of them as the baseline."
        )
    reached, todo = {baseline}, [baseline]
    while todo:
        for name in neighbours[todo.pop()] - reached:
            reached.add(name)
            todo.append(name)
    if missing := sorted(set(neighbours) - reached):
        raise DataError(
            f"No chain of comparisons joins {', '.join(missing)} to the baseline {baseline!r}, so "
            "their strengths cannot be compared. Judge them against a model of the other group."
        )


def strengths(outcomes: Sequence[Outcome], baseline: str) -> dict[str, float]:
    """Strength of every model in nats, the baseline's being 0."""
    design, names = design_of(outcomes, baseline)
    found = logistic(design, np.array([outcome.score for outcome in outcomes]))
    return {baseline: 0.0, **dict(zip(names, found.tolist(), strict=True))}


def win_rates(outcomes: Sequence[Outcome], baseline: str) -> dict[str, float]:
    """P(model beats the baseline), in [0, 1], from the fitted strengths."""
    found = strengths(outcomes, baseline)
    return {name: float(sigmoid(np.array(value))) for name, value in found.items()}


def bootstrap_strengths(
    outcomes: Sequence[Outcome], baseline: str, *, resamples: int, seed: int
) -> dict[str, Floats]:
    """[resamples] strengths per model, each from clusters drawn with replacement."""
    design, names = design_of(outcomes, baseline)
    scores = np.array([outcome.score for outcome in outcomes])
    clusters = {name: i for i, name in enumerate(sorted({o.cluster for o in outcomes}))}
    member = np.array([clusters[outcome.cluster] for outcome in outcomes])
    draw = np.random.Generator(np.random.Philox(seed))
    drawn = np.empty((resamples, len(names)))
    for row in range(resamples):
        times = np.bincount(
            draw.integers(len(clusters), size=len(clusters)), minlength=len(clusters)
        )
        drawn[row] = logistic(design, scores, times[member].astype(float))
    return {baseline: np.zeros(resamples), **dict(zip(names, drawn.T, strict=True))}


@dataclass(frozen=True)
class Strength:
    """One of several models, by Bradley and Terry.

    Attributes:
        model: its name.
        strength: nats, the baseline's being 0.
        low: end of the 95 % interval, from the bootstrap over prompts.
        high: the other end.
        win_rate: against the baseline, as the strengths say.
    """

    model: str
    strength: float
    low: float
    high: float
    win_rate: float


def rank(
    outcomes: Sequence[Outcome], baseline: str, *, seed: int, resamples: int = 200
) -> list[Strength]:
    """Several models by Bradley and Terry, the strongest first."""
    found = strengths(outcomes, baseline)
    drawn = bootstrap_strengths(outcomes, baseline, resamples=resamples, seed=seed)
    rows = []
    for model, strength in found.items():
        low, high = np.quantile(drawn[model], (0.025, 0.975)).tolist()
        rows.append(Strength(model, strength, low, high, float(sigmoid(np.array(strength)))))
    return sorted(rows, key=lambda row: (-row.strength, row.model))
