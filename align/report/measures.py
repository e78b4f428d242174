"""The numbers a run is judged by: their names in `metrics.json`, their units, their reading.

`metrics.json` holds `{"before": {...}, "after": {...}, "n": ..., "seed": ..., "versions": {...},
"data": {...}}`, where each measure is `{"value", "low", "high", "n"}`: an estimate and its 95 %
interval over n rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import DataError


@dataclass(frozen=True)
class Measure:
    """One row of every before/after table.

    Attributes:
        key: its name in `metrics.json`.
        label: its name for readers.
        unit: the unit it is shown in.
        scale: shown value = stored value x scale.
        decimals: digits after the point when shown.
    """

    key: str
    label: str
    unit: str
    scale: float
    decimals: int

    def shown(self, stored: float) -> str:
        """`stored` in the shown unit, as text."""
        text = f"{stored * self.scale:.{self.decimals}f}"
        return text.removeprefix("-") if float(text) == 0.0 else text


MEASURES = (
    Measure("sums/greedy_accuracy", "greedy accuracy", "%", 100.0, 1),
    Measure("sums/sampled_accuracy", "sampled accuracy", "%", 100.0, 1),
    Measure("preference/chosen_logps", "chosen log-prob", "nats", 1.0, 2),
    Measure("preference/rejected_logps", "rejected log-prob", "nats", 1.0, 2),
    Measure("preference/margin", "margin", "nats", 1.0, 3),
    Measure("preference/accuracy", "preference accuracy", "%", 100.0, 1),
    Measure("sft/nll_per_token", "NLL of held-out completions", "nats per token", 1.0, 4),
    Measure("sft/perplexity", "perplexity of held-out completions", "", 1.0, 3),
    *(
        measure
        for kind in ("reward", "preference_model")
        for measure in (
            Measure(f"{kind}/accuracy", "accuracy on held-out pairs", "%", 100.0, 1),
            Measure(f"{kind}/margin", "margin", "nats", 1.0, 3),
            Measure(f"{kind}/log_loss", "log loss", "nats", 1.0, 3),
            Measure(f"{kind}/calibration_error", "expected calibration error", "%", 100.0, 1),
        )
    ),
    Measure("styles/exploitability", "exploitability", "%", 100.0, 1),
    Measure("styles/win_rate", "win rate against the start", "%", 100.0, 1),
    Measure("styles/well_formed", "well formed", "%", 100.0, 1),
    Measure("scenes/hallucination_rate", "sentences that tell what is not there", "%", 100.0, 1),
    Measure("scenes/coverage", "objects told", "%", 100.0, 1),
    Measure("shapes/reward", "reward", "", 1.0, 3),
    Measure("shapes/red", "red shapes", "%", 100.0, 1),
    Measure("shapes/quality", "shape quality", "", 1.0, 3),
    Measure("denoising/chosen_error", "denoising error, chosen", "", 1.0, 3),
    Measure("denoising/rejected_error", "denoising error, rejected", "", 1.0, 3),
    Measure("sums/kl_to_reference", "KL to the reference", "nats", 1.0, 3),
    Measure("styles/kl_to_reference", "KL to the reference", "nats", 1.0, 3),
    Measure("answers/kl_to_start", "KL to the start", "nats per answer", 1.0, 2),
    Measure("answers/length", "length of an answer", "tokens", 1.0, 1),
    Measure("answers/finished", "answers finished", "%", 100.0, 1),
)


# Rows below which no interval is shown: an estimate of its own width is itself a guess there.
FEW = 10

# Evaluations whose measures are chosen above; those of anybody's own are all shown.
_CHOSEN = {measure.key.partition("/")[0] for measure in MEASURES}


def measures_of(keys: Collection[str]) -> list[Measure]:
    """The measures to show of those that were measured, in the order of every table."""
    own = sorted(key for key in keys if key.partition("/")[0] not in _CHOSEN)
    known = [measure for measure in MEASURES if measure.key in keys]
    return known + [Measure(key, key, "", 1.0, 3) for key in own]


@dataclass(frozen=True)
class Estimate:
    """A measured value; `low` and `high` bound its 95 % interval, or both are None."""

    value: float
    low: float | None
    high: float | None
    n: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None where there is none, or too few rows for one to mean anything."""
        is_few = self.n is not None and self.n < FEW
        if self.low is None or self.high is None or is_few:
            return None
        return self.low, self.high

    def is_apart_from(self, other: Estimate) -> bool | None:
        """Whether the two intervals do not overlap; None where one of them has no interval."""
        ours, theirs = self.interval, other.interval
        if ours is None or theirs is None:
            return None
        return ours[0] > theirs[1] or theirs[0] > ours[1]


@dataclass(frozen=True)
class RunMetrics:
    """What `metrics.json` of one run says; a measure that is not in it was not measured."""

    name: str
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    n: int | None
    seed: int | None
    versions: Mapping[str, str]
    data: Mapping[str, Any]


def read_json(path: Path) -> Any:
    """The content of a strict JSON file: NaN and Infinity are refused, as any other reader would.

    Raises:
        DataError: the file is missing or is not strict JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. A finished run leaves this file in its folder: give the "
            "folder of a run that has finished, or finish this one by running its command again."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({error}). Run the command that made it again."
        ) from None


def read_metrics(run_dir: Path) -> RunMetrics:
    """The measures of the run in `run_dir`, checked.

    Raises:
        DataError: `metrics.json` is missing, or one of its values cannot be what it says it is.
    """
    path = Path(run_dir) / "metrics.json"
    return metrics_from(read_json(path), name=Path(run_dir).resolve().name, where=str(path))


def metrics_from(node: Any, *, name: str, where: str) -> RunMetrics:
    """The measures in an already loaded `metrics.json`; `where` names it in errors."""
    if not isinstance(node, Mapping) or not {"before", "after"} <= node.keys():
        raise DataError(
            f'{where} is not the metrics of a run: it needs "before" and "after". Run the command '
            "that made it again."
        )
    return RunMetrics(
        name=name,
        before=_estimates(node["before"], f"{where}: before"),
        after=_estimates(node["after"], f"{where}: after"),
        n=node.get("n"),
        seed=node.get("seed"),
        versions=dict(node.get("versions") or {}),
        data=dict(node.get("data") or {}),
    )


def _estimates(node: Any, where: str) -> dict[str, Estimate]:
    if not isinstance(node, Mapping):
        raise DataError(f"{where} must map names to values, not be {type(node).__name__}.")
    found: dict[str, Estimate] = {}
    for key, entry in node.items():
        estimate = _estimate(entry, f"{where}: {key}")
        if estimate is not None:
            found[key] = estimate
    return found


def _estimate(entry: Any, where: str) -> Estimate | None:
    if entry is None or (isinstance(entry, Mapping) and entry.get("value") is None):
        return None
    if not isinstance(entry, Mapping):
        raise DataError(f'{where} must be {{"value", "low", "high", "n"}}, not {entry!r}.')
    numbers = {name: entry.get(name) for name in ("value", "low", "high")}
    for name, number in numbers.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if number is not None and not (is_number and math.isfinite(number)):
            raise DataError(f"{where}: {name} must be a finite number or null, not {number!r}.")
    value, low, high = numbers["value"], numbers["low"], numbers["high"]
    assert value is not None
    has_interval = low is not None and high is not None
    if (low is None) != (high is None) or (has_interval and not low <= value <= high):
        raise DataError(
            f"{where}: {low} to {high} is no interval around {value}; give both ends or neither."
        )
    return Estimate(value=value, low=low, high=high, n=entry.get("n"))
