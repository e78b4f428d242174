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

# Steps up to which each has its point, since a line of one or two is nothing to see.
FEW_STEPS = 20
# So few steps are named on the axis, which would show fractions of a step.
FEW_TICKS = 5
# Unlike log-probs, they start at 0 and do not move with the batch.
LOG_RATIOS = (
    "log-ratio to the frozen policy",
    "nats",
    0.0,
    (
        ("logratios/chosen", "chosen", BLUE, "-"),
        ("logratios/rejected", "rejected", VERMILION, (0, (4, 1.6))),
    ),
)
# In logs without log-ratios, such as those of denoisers.
REWARDS = (
    "reward as the objective compares it",
    "",
    0.0,
    (
        ("rewards/chosen", "chosen", BLUE, "-"),
        ("rewards/rejected", "rejected", VERMILION, (0, (4, 1.6))),
    ),
)
# (title, unit, reference level, series: (key in the log, label, colour, dash))
PANELS = (
    ("loss", "", None, (("loss", "loss", BLUE, "-"),)),
    ("reward margin", "", 0.0, (("rewards/margins", "margin", BLUE, "-"),)),
    LOG_RATIOS,
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
    """Draw six panels over steps: loss, margin, log-ratios, accuracy, gradient norm, rate.

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
    has_ratios = any(_has(log_history, key) for key in ("logratios/chosen", "logratios/rejected"))
    panels = [REWARDS if panel is LOG_RATIOS and not has_ratios else panel for panel in PANELS]
    if not any(_has(log_history, key) for *_, series in panels for key, *_ in series):
        raise DataError(
            "The training log holds none of the curves (loss, rewards/margins, ...): nothing was "
            "logged. Set train.logging_steps below the number of steps and train again."
        )
    figure = new_figure(11.0, 6.0)
    headline(figure, title)
    logged = len({entry["step"] for entry in log_history if entry.get("loss") is not None})
    if 0 < logged <= 2:
        said = "once" if logged == 1 else "twice"
        text = f"Logged {said}: a lower train.logging_steps gives curves."
        figure.supxlabel(text, x=0.012, ha="left", fontsize=8.5, color=SOFT)
    for position, (name, unit, level, series) in enumerate(panels, start=1):
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


def _has(log_history: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(series_of(log_history, prefix + key)[0] for prefix in ("", "eval_"))


def _draw(
    axes: Axes,
    log_history: Sequence[Mapping[str, Any]],
    level: float | None,
    series: Sequence[tuple[str, str, str, Any]],
) -> None:
    is_empty = True
    drawn: set[int] = set()
    for key, label, colour, dash in series:
        steps, values, not_finite = series_of(log_history, key)
        eval_steps, eval_values, eval_not_finite = series_of(log_history, f"eval_{key}")
        if steps:
            marker = "o" if len(steps) <= FEW_STEPS else ""
            axes.plot(
                steps,
                values,
                color=colour,
                linestyle=dash,
                linewidth=1.5,
                marker=marker,
                markersize=4.5,
                label=label,
            )
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
        drawn.update(steps, eval_steps, not_finite, eval_not_finite)
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
    if len(drawn) <= FEW_TICKS:
        axes.set_xticks(sorted(drawn))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "\N{MINUS SIGN}"))
    axes.margins(x=0.02, y=0.08)
