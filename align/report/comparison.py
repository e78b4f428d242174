"""One picture of several runs: each measure before and after training, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import DataError, RecipeError
from align.report.measures import (
    FEW,
    MEASURES,
    Estimate,
    Measure,
    RunMetrics,
    measures_of,
    read_metrics,
)
from align.report.pictures import INK, SERIES, SOFT, dress, headline, new_figure, save
from align.report.table import NOT_MEASURED, column_names, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (
    "sums/sampled_accuracy",
    "sums/greedy_accuracy",
    "preference/chosen_logps",
    "preference/rejected_logps",
)
BEFORE = "#8c8c8c"


def plot_comparison(
    runs: Sequence[Path],
    path: Path,
    *,
    labels: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    title: str = "Before and after training",
) -> Path:
    """Draw one panel per measure: grey before, coloured after, bars for the 95 % intervals.

    Args:
        runs: run folders, each with a `metrics.json`; at most six.
        path: the PNG to write.
        labels: what to call the runs; their folder names by default.
        measures: keys of `metrics.json`, one panel each; by default those of `SHOWN` that one of
            the runs measured, else the first four of what they measured.
        title: the headline.

    Raises:
        RecipeError: more runs than can be told apart, or labels or measures that do not fit.
        DataError: a run has no good `metrics.json`, or none of them has one of the measures.
        MachineError: matplotlib is missing, or the picture cannot be written.
    """
    if not 1 <= len(runs) <= len(SERIES):
        raise RecipeError(
            f"One picture compares 1 to {len(SERIES)} runs, not {len(runs)}: give fewer folders."
        )
    found = [read_metrics(run) for run in runs]
    measured = {key for run in found for key in (*run.before, *run.after)}
    by_key = {measure.key: measure for measure in (*MEASURES, *measures_of(measured))}
    unknown = [key for key in measures or () if key not in by_key]
    if unknown or (measures is not None and not measures):
        raise RecipeError(
            f"There is no measure {', '.join(unknown) or '(none given)'}; choose from "
            f"{', '.join(by_key)}."
        )
    if measures is None:
        first = [measure.key for measure in measures_of(measured)[: len(SHOWN)]]
        measures = [key for key in SHOWN if key in measured] or first
        if not measures:
            raise DataError(
                "None of the runs measured anything, so there is nothing to draw: name what is to "
                "be measured in evaluate.suite and run again."
            )
    names = list(labels) if labels is not None else column_names(found)
    if len(names) != len(runs):
        raise RecipeError(f"{len(runs)} runs need {len(runs)} labels, not {len(names)}.")
    for key in measures:
        if key not in measured:
            raise DataError(
                f"None of the runs measured {key}: leave it out of the picture, or evaluate again."
            )
    figure = new_figure(0.9 + 2.95 * len(measures), 4.2)
    headline(figure, title)
    for position, key in enumerate(measures, start=1):
        axes = figure.add_subplot(1, len(measures), position)
        _panel(axes, by_key[key], found, names)
    figure.supxlabel(_legend(found), x=0.012, ha="left", fontsize=8.5, color=SOFT)
    return save(figure, path)


def _legend(runs: Sequence[RunMetrics]) -> str:
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    parts = [
        "Grey: before training; coloured: after. Bars: 95 % intervals; ▲ ▼: they do not overlap."
    ]
    counts = [e.n for run in runs for e in (*run.before.values(), *run.after.values())]
    if any(n is not None and n < FEW for n in counts):
        parts.append(f"Below n = {FEW} points only.")
    if seeds:
        parts.append(f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}.")
    return " ".join(parts)


def _panel(axes: Axes, measure: Measure, runs: Sequence[RunMetrics], names: Sequence[str]) -> None:
    dress(axes, measure.label, ", ".join([measure.unit, *_counts(measure, runs)]))
    for at, (run, (colour, marker)) in enumerate(zip(runs, SERIES, strict=False)):
        before, after = run.before.get(measure.key), run.after.get(measure.key)
        if before is not None and after is not None:
            axes.annotate(
                "",
                xy=(at + 0.13, after.value * measure.scale),
                xytext=(at - 0.17, before.value * measure.scale),
                arrowprops={"arrowstyle": "-", "color": "#c4c4c4", "linewidth": 1.2},
                zorder=1,
            )
        if before is not None:
            _point(axes, at - 0.17, measure, before, BEFORE, "o", filled=False)
        if after is not None:
            _point(axes, at + 0.13, measure, after, colour, marker, filled=True)
            axes.annotate(
                f"{measure.shown(after.value)}{mark(before, after)}".replace("-", "\N{MINUS SIGN}"),
                xy=(at + 0.13, after.value * measure.scale),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
                fontweight="bold",
            )
        if before is None and after is None:
            axes.text(
                at,
                0.5,
                NOT_MEASURED.replace(" ", "\n"),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="center",
                fontsize=8.5,
                color=SOFT,
            )
    axes.set_xticks(range(len(runs)), list(names), fontsize=9, color=INK)
    axes.set_xlim(-0.6, len(runs) - 1 + 0.95)
    axes.margins(y=0.15)


def _counts(measure: Measure, runs: Sequence[RunMetrics]) -> list[str]:
    sides = [side.get(measure.key) for run in runs for side in (run.before, run.after)]
    counts = sorted({side.n for side in sides if side is not None and side.n is not None})
    if not counts:
        return []
    return [f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")]


def _point(
    axes: Axes,
    at: float,
    measure: Measure,
    estimate: Estimate,
    colour: str,
    marker: str,
    *,
    filled: bool,
) -> None:
    value = estimate.value * measure.scale
    if estimate.interval is not None:
        low, high = (end * measure.scale for end in estimate.interval)
        axes.errorbar(
            at,
            value,
            yerr=[[value - low], [high - value]],
            color=colour,
            capsize=3.5,
            elinewidth=1.6,
            capthick=1.6,
            fmt="none",
            zorder=2,
        )
    axes.plot(
        at,
        value,
        marker=marker,
        markersize=7,
        color=colour,
        markerfacecolor=colour if filled else "white",
        markeredgewidth=1.6,
        linestyle="none",
        zorder=3,
    )
