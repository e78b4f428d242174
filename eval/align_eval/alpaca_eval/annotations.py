"""AlpacaEval's scores from annotations: raw, discrete and length-controlled win rate.

An annotation's preference lies in [1, 2] and 2 says that the model wins (output_2 is the model's);
0 is the older way to write a draw. Everything is joined by the instruction's text, never by row.

Source: tatsu-lab/alpaca_eval, commit cd543a1, metrics/winrate.py, helpers.py and glm_winrate.py;
Dubois et al. 2024, arXiv 2404.04475.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import DataError, RecipeError
from align.runs.folder import write_atomically
from align_eval.bradley_terry import sigmoid

# The columns of a published file of weights, in its order.
LENGTH = "np.tanh(std_delta_len)"
DIFFICULTY = "instruction_difficulty"
MODEL = "not_gamed_baseline.astype(float)"
WEIGHTS = (LENGTH, DIFFICULTY, MODEL)
COLUMNS = (
    *("win_rate", "standard_error", "mode", "avg_length", "n_wins", "n_wins_base", "n_draws"),
    *("n_total", "discrete_win_rate"),
)
LC_COLUMNS = ("length_controlled_winrate", "lc_standard_error")


@dataclass(frozen=True)
class AlpacaScore:
    """A model against the baseline; all rates in percent.

    Attributes:
        win_rate: mean of preference - 1.
        standard_error: sample deviation over the root of n_total; None for a single one.
        discrete_win_rate: (wins + draws / 2) / n_total.
        n_wins: preferences above 1.5.
        n_wins_base: below 1.5.
        n_draws: exactly 1.5.
        n_total: annotations with a preference.
        n_failed: annotations without one; they enter no rate.
        avg_length: characters of the model's outputs, cut to an integer.
        length_controlled_win_rate: at equal length, or None where it cannot be said.
        lc_standard_error: of its predictions, where it was fitted.
        length_controlled_kind: "published weights", "official", or "offline estimate: ..." with
            what is missing for the official one.
        length_controlled_error: largest error of such an estimate that was seen on published
            models, in points; None where it is none, or none is known.
    """

    win_rate: float
    standard_error: float | None
    discrete_win_rate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    n_failed: int
    avg_length: int | None
    length_controlled_win_rate: float | None = None
    lc_standard_error: float | None = None
    length_controlled_kind: str | None = None
    length_controlled_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; None becomes null."""
        return asdict(self)


def score_annotations(
    annotations: list[dict[str, Any]],
    *,
    weights: Mapping[str, Any] | Sequence[float] | None = None,
    difficulty: Mapping[str, float] | None = None,
) -> AlpacaScore:
    """Scores of one model's annotations.

    Args:
        annotations: rows with instruction and preference; a missing preference is a failure.
        weights: the three published coefficients of the model, by the columns of the published
            file or in its order (length, difficulty, model). Needs `difficulty`.
        difficulty: instruction -> value; every annotation must be about one of these.

    Raises:
        DataError: no preference at all, one out of range, an instruction that occurs twice or is
            foreign to `difficulty`.
        RecipeError: `weights` without `difficulty`.
    """
    instructions = _instructions(annotations)
    preferences = [
        preference_of(row, f"annotation {number}") for number, row in enumerate(annotations, 1)
    ]
    found = np.array([value for value in preferences if value is not None])
    if not len(found):
        raise DataError(
            f"None of the {len(annotations)} annotations has a preference, so there is no win rate."
        )
    shares = found - 1
    n = len(shares)
    # As the package rounds: exactly 1.5 is a draw.
    wins, draws = int((found > 1.5).sum()), int((found == 1.5).sum())
    lengths = [len(row["output_2"]) for row in annotations if isinstance(row.get("output_2"), str)]
    controlled = None
    if difficulty is not None:
        values = difficulties(instructions, difficulty)
        if weights is not None:
            _, of_difficulty, of_model = _weights(weights)
            controlled = 100 * float(sigmoid(of_model + of_difficulty * values).mean())
    elif weights is not None:
        raise RecipeError(
            "The weights of the length-controlled win rate need the difficulty of the "
            "instructions: give both, or neither for the raw win rate."
        )
    return AlpacaScore(
        win_rate=100 * math.fsum(shares) / n,
        standard_error=100 * float(shares.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        discrete_win_rate=100 * (wins + draws / 2) / n,
        n_wins=wins,
        n_wins_base=n - wins - draws,
        n_draws=draws,
        n_total=n,
        n_failed=len(annotations) - n,
        avg_length=int(sum(lengths) / len(lengths)) if lengths else None,
        length_controlled_win_rate=controlled,
        length_controlled_kind=None if controlled is None else "published weights",
    )


def _instructions(annotations: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[str, int] = {}
    for number, row in enumerate(annotations, start=1):
        text = row.get("instruction")
        if not isinstance(text, str):
            raise DataError(f"Annotation {number} has no instruction; every one needs its text.")
        if text in seen:
            raise DataError(
                f"Annotation {number} has the instruction of annotation {seen[text]}, so the two "
                "cannot be told apart. Leave one of them out; several models are scored one by one."
            )
        seen[text] = number
    return list(seen)


def preference_of(row: Mapping[str, Any], where: str) -> float | None:
    """In [1, 2], or None where the judge gave none.

    Raises:
        DataError: it is something else.
    """
    value = row.get("preference")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: the preference is no number; write one from 1 to 2, or null.")
    value = 1.5 if value == 0 else float(value)
    if not 1 <= value <= 2:
        raise DataError(
            f"{where}: the preference {value:g} is not in [1, 2], where 2 says that the model wins."
        )
    return value


def difficulties(instructions: Sequence[str], difficulty: Mapping[str, float]) -> np.ndarray:
    """[N] difficulty of each instruction, joined by its text.

    Raises:
        DataError: an instruction is foreign.
    """
    foreign = [number for number, text in enumerate(instructions, 1) if text not in difficulty]
    if foreign:
        raise DataError(
            f"{len(foreign)} of {len(instructions)} annotations are about an instruction that is "
            f"none of the {len(difficulty)} with a known difficulty, the first one is annotation "
            f"{foreign[0]}. Score them against the set they belong to, or take them out."
        )
    return np.array([float(difficulty[text]) for text in instructions])


def _weights(weights: Mapping[str, Any] | Sequence[float]) -> tuple[float, float, float]:
    try:
        values = (
            [weights[name] for name in WEIGHTS] if isinstance(weights, Mapping) else list(weights)
        )
        length, of_difficulty, of_model = map(float, values)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"The weights of the length-controlled win rate are the three numbers {WEIGHTS}, by "
            "these names or in this order."
        ) from error
    return length, of_difficulty, of_model


def leaderboard_row(score: AlpacaScore, mode: str = "community") -> dict[str, Any]:
    """The columns of the official leaderboard; an estimate is none of its numbers."""
    row = {**score.to_json(), "mode": mode}
    columns = {name: row[name] for name in COLUMNS}
    is_estimate = (score.length_controlled_kind or "").startswith("offline estimate")
    if score.length_controlled_win_rate is not None and not is_estimate:
        values = (score.length_controlled_win_rate, score.lc_standard_error)
        columns |= dict(zip(LC_COLUMNS, values, strict=True))
    return columns


def write_leaderboard(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """leaderboard.csv: model -> columns; the first column has no name."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *columns])
    for model, row in rows.items():
        writer.writerow([model, *("" if (v := row.get(c)) is None else v for c in columns)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


def read_leaderboard(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a published table, or of a file of weights, by the unnamed first column.

    Raises:
        DataError: it is no such table, or a model occurs twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Name a CSV file."
        ) from error
    found = {row.pop(""): row for row in rows if "" in row}
    if not rows or len(found) != len(rows):
        raise DataError(
            f"{path} is no table whose first, unnamed column names each model once "
            f"({len(rows)} rows, {len(found)} models)."
        )
    return found
