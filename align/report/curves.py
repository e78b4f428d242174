"""The training curves of a run, drawn from transformers' `log_history`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import DataError
from align.report.measures import read_json
from align.report.pictures import (
    BAD,
    BLUE,
    INK,
    SOFT,
    VERMILION,
    dress,
    headline,
    new_figure,
    save,
    say,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (title, unit, reference level, series: (key in the log, label, colour, dash))
PANELS = (
    ("loss", "", None, (("loss", "loss", BLUE, "-"),)),
    ("reward margin", "", 0.0, (("rewards/margins", "margin", BLUE, "-"),)),
    (
        "log-prob of the completions",
        "nats",
        None,
        (
            ("logps/chosen", "chosen", BLUE, "-"),
            ("logps/rejected", "rejected", VERMILION, (0, (4, 1.6))),
        ),
    ),
    ("preference accuracy", "fraction", 0.5, (("rewards/accuracies", "accuracy", BLUE, "-"),)),
    ("gradient norm", "", None, (("grad_norm", "gradient norm", BLUE, "-"),)),
    ("learning rate", "", None, (("learning_rate", "learning rate", BLUE, "-"),)),
)


def plot_run_curves(run_dir: Path) -> Path:
    """Draw `curves.png` into a run folder from its `log_history.json`, and return its path.

    Raises:
        DataError: there is no `log_history.json`, or nothing was logged in it.
        MachineError: matplotlib is missing, or the picture cannot be written.
    """
    run_dir = Path(run_dir)
    path = run_dir / "log_history.json"
    history = read_json(path)
    if not isinstance(history, list) or not all(isinstance(entry, Mapping) for entry in history):
        raise DataError(
            f"{path} must be a list of log entries, as transformers' trainer writes it."
        )
    return plot_curves(history, run_dir / "curves.png", title=run_dir.resolve().name)


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """Draw six panels over optimiser steps: loss, margin, log-probs, accuracy, gradient norm, rate.

    Values from evaluation passes are dots on the same axes; a value that is not finite is a red
    tick on the bottom, never a point.

    Args:
        log_history: transformers' `trainer_state.log_history`.
        path: the PNG to write.
        title: what the picture is of.

    Raises:
        DataError: no entry of the log has a step and one of the drawn values.
        MachineError: matplotlib is missing, or the picture cannot be written.
    """
    drawn = [key for *_, series in PANELS for key, *_ in series]
    if not any(
        series_of(log_history, prefix + key)[0] for key in drawn for prefix in ("", "eval_")
    ):
        raise DataError(
            "The training log holds none of the curves (loss, rewards/margins, logps/chosen, ...): "
            "nothing was logged. Set train.logging_steps below the number of steps and train again."
        )
    figure = new_figure(11.0, 6.0)
    headline(figure, title)
    for position, (name, unit, level, series) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(2, 3, position)
        dress(axes, name, unit)
        _draw(axes, log_history, level, series)
        if position > 3:
            axes.set_xlabel("optimiser step", fontsize=8.5, color=SOFT)
    return save(figure, path)


def series_of(
    log_history: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[int], list[float], list[int]]:
    """The steps and values of one logged key, and the steps at which it was not finite."""
    steps: list[int] = []
    values: list[float] = []
    not_finite: list[int] = []
    for entry in log_history:
        value, step = entry.get(key), entry.get("step")
        if step is None or value is None:
            continue
        if math.isfinite(float(value)):
            steps.append(int(step))
            values.append(float(value))
        else:
            not_finite.append(int(step))
    return steps, values, not_finite


def _draw(
    axes: Axes,
    log_history: Sequence[Mapping[str, Any]],
    level: float | None,
    series: Sequence[tuple[str, str, str, Any]],
) -> None:
    is_empty = True
    for key, label, colour, dash in series:
        steps, values, not_finite = series_of(log_history, key)
        eval_steps, eval_values, eval_not_finite = series_of(log_history, f"eval_{key}")
        if steps:
            axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.5, label=label)
            if len(steps) == 1:
                axes.plot(steps, values, color=colour, marker="_", markersize=12)
        if eval_steps:
            axes.plot(
                eval_steps,
                eval_values,
                color=colour,
                linestyle="none",
                marker="o",
                markersize=4.5,
                markerfacecolor="white",
                label=f"{label}, held out",
            )
        for step in not_finite + eval_not_finite:
            axes.axvline(step, ymax=0.06, color=BAD, linewidth=1.5)
        if not_finite + eval_not_finite:
            axes.plot([], [], color=BAD, linewidth=1.5, label=f"{label} not finite")
        is_empty = is_empty and not (steps or eval_steps or not_finite or eval_not_finite)
    if is_empty:
        say(axes, "not logged")
        return
    if level is not None:
        axes.axhline(level, color="#9a9a9a", linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(handles, labels, fontsize=8, frameon=False, labelcolor=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "\N{MINUS SIGN}"))
    axes.margins(x=0.02, y=0.08)
