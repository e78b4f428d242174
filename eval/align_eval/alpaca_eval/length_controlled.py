"""AlpacaEval's length-controlled win rate, fitted: what the judge would say at equal lengths.

A logistic regression without intercept of the preference on tanh(standardised difference of
lengths), on the instruction's difficulty and on a constant of the model, with an L1 penalty whose
strength is chosen by cross-validation in five groups; two length-gamed versions of the baseline
join the rows at a tenth of the weight. The prediction sets the length term to zero.

Source: tatsu-lab/alpaca_eval, commit cd543a1, metrics/glm_winrate.py (length_controlled_v1); Dubois
et al. 2024, arXiv 2404.04475, section 3. Differs from it: the optimum of the same objective is
found to 1e-10, without scikit-learn, where liblinear stops at 1e-4. On made-up gamed rows the
package 0.6.6 gave 8.2757, this 8.2721, and the package with its tolerance at 1e-10 the same 8.2721.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import DataError, RecipeError
from align.runs.manifest import file_digest
from align_eval.alpaca_eval.annotations import (
    WEIGHTS,
    AlpacaScore,
    difficulties,
    preference_of,
    score_annotations,
)
from align_eval.bradley_terry import Floats, sigmoid

# Of df_gamed.csv at revision 2edc6fad8be6b14ea7230aabfd08188da6b8b814 of tatsu-lab/alpaca_eval.
GAMED_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
# Of the 805 instructions in the order of the official files, which `index` counts in.
ORDER_SHA256 = "bfe8c45991f635de0b1f94abeeb1335ef665d58eddd87ddf6fa71b7b0c2ce7a5"
GAMED_WEIGHT = 0.2 / 2
# Of an estimate from the difficulties alone: the fits to the published annotations of 55 models
# against their published numbers, without the baseline and the model that was made to game lengths,
# which was 13.6 points off. Without the difficulties it was 6.2 on average and 22.6 at most, which
# is no estimate.
MEAN_ERROR, LARGEST_ERROR = 1.2, 4.8
NO_ESTIMATE = (
    "There is no length-controlled win rate: it needs the difficulty of the instructions. Name "
    "df_gamed.csv of the data set tatsu-lab/alpaca_eval as `gamed` for the official number, or a "
    "table of index and instruction_difficulty as `difficulty` for an estimate."
)
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)


@dataclass(frozen=True)
class Gamed:
    """The rows of df_gamed.csv.

    Attributes:
        design: [G, 3] tanh(std_delta_len), difficulty, 0 for the constant.
        preferences: [G] in [0, 1].
        difficulty: instruction -> value.
        is_official: the file is the published one, byte by byte.
    """

    design: Floats
    preferences: Floats
    difficulty: Mapping[str, float]
    is_official: bool


@dataclass(frozen=True)
class LengthControlled:
    """A fitted model.

    Attributes:
        win_rate: percent, at equal lengths.
        standard_error: of the predictions, percent.
        weights: by the columns of the published files.
        kind: "official", or "offline estimate: ..." with what is missing.
        error: largest error of such estimates that was seen on published models, in points; None
            where none is known.
    """

    win_rate: float
    standard_error: float
    weights: Mapping[str, float]
    kind: str
    error: float | None = None


def order_digest(instructions: Sequence[str]) -> str:
    """Sha256 of instructions in their order."""
    return hashlib.sha256("\0".join(instructions).encode()).hexdigest()


def read_gamed(path: Path, instructions: Sequence[str]) -> Gamed:
    """df_gamed.csv, whose `index` counts in the official order of the instructions.

    Args:
        path: the official side file, or one of its kind.
        instructions: of the reference outputs, in the order of their file.

    Raises:
        DataError: a column or value is missing, or an index points outside the instructions.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        index = [int(float(row["index"])) for row in rows]
        values = np.array(
            [
                [float(row[k]) for k in ("std_delta_len", "instruction_difficulty", "preference")]
                for row in rows
            ]
        )
        texts = [instructions[i] for i in index]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is not the side file df_gamed.csv ({type(error).__name__}): it needs the "
            "columns index, std_delta_len, instruction_difficulty and preference, and an index "
            f"below {len(instructions)}. Get it from the data set tatsu-lab/alpaca_eval."
        ) from error
    is_official = file_digest(path) == GAMED_SHA256
    if is_official and order_digest(instructions) != ORDER_SHA256:
        raise DataError(
            f"{path} counts instructions in the official order, and the reference outputs are in "
            "another one. Give the official file of reference outputs as it was published."
        )
    kept = np.isfinite(values).all(axis=1)
    design = np.stack([np.tanh(values[:, 0]), values[:, 1], np.zeros(len(values))], axis=1)
    difficulty: dict[str, float] = {}
    for text, value in zip(texts, values[:, 1].tolist(), strict=True):
        difficulty.setdefault(text, value)
    return Gamed(design[kept], values[kept, 2], difficulty, is_official)


def read_difficulty(path: Path, instructions: Sequence[str]) -> dict[str, float]:
    """instruction_difficulty.csv: `index` in the order of the reference outputs, and the value.

    Raises:
        DataError: it is no such table, or not one row per instruction.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row][1:]
        found = {instructions[int(row[0])]: float(row[1]) for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is no table of index and instruction_difficulty over {len(instructions)} "
            f"instructions ({type(error).__name__})."
        ) from error
    if len(found) != len(instructions):
        raise DataError(
            f"{path} has the difficulty of {len(found)} instructions, and there are "
            f"{len(instructions)}. Give the file that belongs to the reference outputs."
        )
    return found


def fit_length_controlled(
    annotations: Sequence[Mapping[str, Any]],
    *,
    gamed: Gamed | None = None,
    difficulty: Mapping[str, float] | None = None,
) -> LengthControlled:
    """Fits the published model to one model's annotations.

    Args:
        annotations: rows with instruction, both outputs and the preference.
        gamed: the official side file; without it the number is an offline estimate.
        difficulty: instruction -> value, where there is no side file.

    Raises:
        RecipeError: neither is given.
        DataError: an instruction is foreign to the side file.
    """
    instructions = [row["instruction"] for row in annotations]
    known = gamed.difficulty if gamed is not None else difficulty
    if known is None:
        raise RecipeError(NO_ESTIMATE)
    hard = difficulties(instructions, known)
    gaps = np.array([len(row["output_1"]) - len(row["output_2"]) for row in annotations], float)
    deviation = gaps.std(ddof=1)
    ones = np.ones(len(gaps))
    relative = gaps / deviation if deviation > 0 else gaps
    design = np.stack([np.tanh(relative), hard, ones], axis=1)
    preferences = [preference_of(row, f"annotation {i}") for i, row in enumerate(annotations, 1)]
    kept = np.array([value is not None for value in preferences])
    targets = np.array([value - 1 for value in preferences if value is not None])
    rows, weights = design[kept], ones[kept]
    if gamed is not None:
        rows = np.concatenate([gamed.design, rows])
        targets = np.concatenate([gamed.preferences, targets])
        weights = np.concatenate([np.full(len(gamed.design), GAMED_WEIGHT), weights])
    found = _cross_validated(rows, targets, weights)
    predicted = sigmoid(np.stack([0 * ones, hard, ones], axis=1) @ found)
    return LengthControlled(
        win_rate=100 * float(predicted.mean()),
        standard_error=100 * float(predicted.std(ddof=1)) / math.sqrt(len(predicted)),
        weights=dict(zip(WEIGHTS, found.tolist(), strict=True)),
        kind=_kind(gamed),
        error=LARGEST_ERROR if gamed is None else None,
    )


def _kind(gamed: Gamed | None) -> str:
    if gamed is None:
        return (
            "offline estimate: df_gamed.csv is not given; on 55 published models such estimates "
            f"were {MEAN_ERROR} points off on average, {LARGEST_ERROR} at most"
        )
    if gamed.is_official:
        return "official"
    return "offline estimate: df_gamed.csv is not the known file"


def with_length_control(
    annotations: list[dict[str, Any]],
    *,
    gamed: Gamed | None = None,
    difficulty: Mapping[str, float] | None = None,
) -> tuple[AlpacaScore, LengthControlled | None]:
    """Raw scores and, where the difficulty is known, the fitted length-controlled one together."""
    score = score_annotations(annotations)
    if gamed is None and difficulty is None:
        return score, None
    controlled = fit_length_controlled(annotations, gamed=gamed, difficulty=difficulty)
    score = replace(
        score,
        length_controlled_win_rate=controlled.win_rate,
        lc_standard_error=controlled.standard_error,
        length_controlled_kind=controlled.kind,
        length_controlled_error=controlled.error,
    )
    return score, controlled


def _cross_validated(design: Floats, targets: Floats, weights: Floats) -> Floats:
    """[3] coefficients at the strength that predicts left-out rows best."""
    n = len(targets)
    fold = np.empty(n, int)
    # The package's folds: rows in the order of a reversed sort, dealt one by one.
    fold[np.argsort(np.full(n, 2))[::-1]] = np.arange(n) % FOLDS
    scores = np.zeros(len(STRENGTHS))
    for left_out in range(FOLDS):
        train, test = fold != left_out, fold == left_out
        if not (train.any() and test.any()):
            continue
        start = np.zeros(design.shape[1])
        for i, strength in enumerate(STRENGTHS):
            start = _lasso(design[train], targets[train], weights[train], strength, start)
            p = np.clip(sigmoid(design[test] @ start), 1e-15, 1 - 1e-15)
            y = targets[test]
            scores[i] += (weights[test] * (y * np.log(p) + (1 - y) * np.log(1 - p))).mean()
    best = float(STRENGTHS[scores.argmax()])
    return _lasso(design, targets, weights, best, np.zeros(design.shape[1]))


def _lasso(
    design: Floats, targets: Floats, weights: Floats, strength: float, start: Floats
) -> Floats:
    """argmin |x|_1 + strength * weighted log loss, by proximal Newton steps."""

    def value(x: Floats) -> float:
        z = design @ x
        return float(np.abs(x).sum() + strength * (weights @ (np.logaddexp(0.0, z) - targets * z)))

    x, now = start, value(start)
    for _ in range(100):
        p = sigmoid(design @ x)
        gradient = strength * (design.T @ (weights * (p - targets)))
        curvature = strength * (design * (weights * p * (1 - p))[:, None]).T @ design
        # Columns may say the same, as where all lengths are equal.
        curvature += 1e-12 * (1 + curvature.trace()) * np.eye(len(x))
        y = _quadratic_lasso(curvature, gradient - curvature @ x)
        size = 1.0
        while (then := value(x + size * (y - x))) > now and size > 1e-10:
            size /= 2
        moved = size * (y - x)
        if then > now or np.abs(moved).max() < 1e-10:
            return x
        # Where the rows can be told apart wholly, steps go on for ever and gain nothing.
        is_flat = now - then <= 1e-13 * abs(now)
        x, now = x + moved, then
        if is_flat:
            return x
    return x


def _quadratic_lasso(curvature: Floats, slopes: Floats) -> Floats:
    """argmin y.curvature.y / 2 + slopes.y + |y|_1, exactly: the best of all patterns of signs."""
    best, least = np.zeros(len(slopes)), 0.0
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(slopes)):
        active = [k for k, sign in enumerate(signs) if sign]
        if not active:
            continue
        s = np.array(signs)
        y = np.zeros(len(slopes))
        y[active] = np.linalg.solve(curvature[np.ix_(active, active)], -(slopes + s)[active])
        value = float(y @ curvature @ y / 2 + slopes @ y + np.abs(y).sum())
        if (y[active] * s[active] > 0).all() and value < least:
            best, least = y, value
    return best
