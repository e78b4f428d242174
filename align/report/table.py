"""The before/after table, of one run or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from align.report.measures import (
    FEW,
    Estimate,
    Measure,
    RunMetrics,
    measures_of,
    read_metrics,
)

NOT_MEASURED = "not measured"


def compare(runs: Sequence[Path]) -> Table:
    """The runs' measures before and after training, with 95 % intervals.

    One `before` column stands for all runs where every run started from the same numbers. A value
    after training carries ▲ or ▼ where its interval and the one before it do not overlap.

    Args:
        runs: run folders, each with a `metrics.json`.

    Raises:
        DataError: a run has no `metrics.json`, or a broken one.
    """
    return table([read_metrics(run) for run in runs])


def table(runs: Sequence[RunMetrics]) -> Table:
    """The same as `compare`, from metrics that are already read."""
    share_before = all(run.before == runs[0].before for run in runs)
    # Text, not str: rich would take a [bracket] in a caption or a run's name for mark-up.
    shown = Table(
        title="Before and after training", caption=Text(caption(runs)), caption_justify="left"
    )
    headers = ["before"] if share_before else []
    for name in column_names(runs):
        headers += [name] if share_before else [f"{name}\nbefore", f"{name}\nafter"]
    shown.add_column("measure", no_wrap=True)
    for header in headers:
        shown.add_column(Text(header), justify="right", no_wrap=True)
    measured = {key for run in runs for side in (run.before, run.after) for key in side}
    for measure in measures_of(measured):
        label = Text.assemble(measure.label, "\n", (measure.unit, "dim"))
        cells = [_cell(measure, runs[0].before.get(measure.key))] if share_before else []
        for run in runs:
            before, after = run.before.get(measure.key), run.after.get(measure.key)
            if not share_before:
                cells.append(_cell(measure, before))
            cells.append(_cell(measure, after, mark(before, after)))
        shown.add_row(label, *cells)
    return shown


def column_names(runs: Sequence[RunMetrics]) -> list[str]:
    """The runs' folder names, numbered where two runs share one."""
    names = [run.name for run in runs]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def mark(before: Estimate | None, after: Estimate | None) -> str:
    """▲ or ▼ where the intervals before and after do not overlap, else nothing."""
    if before is None or after is None or not after.is_apart_from(before):
        return ""
    return "▲" if after.value > before.value else "▼"


def caption(runs: Sequence[RunMetrics]) -> str:
    """What the intervals and the marks mean, and what was measured on how much."""
    measured = "; ".join(
        f"{name}: n = {_or_unknown(run.n)}, seed {_or_unknown(run.seed)}"
        for name, run in zip(column_names(runs), runs, strict=True)
    )
    legend = "[low, high]: 95 % interval. ▲ ▼: the intervals before and after do not overlap."
    return f"{legend}\n{measured}"


def _or_unknown(value: int | None) -> str:
    return "not recorded" if value is None else str(value)


def _cell(measure: Measure, estimate: Estimate | None, change: str = "") -> Text:
    if estimate is None:
        return Text(NOT_MEASURED, style="dim")
    value = Text.assemble(f"{change} " if change else "", (measure.shown(estimate.value), "bold"))
    return Text.assemble(value, "\n", (interval(measure, estimate), "dim"))


def interval(measure: Measure, estimate: Estimate) -> str:
    """The 95 % interval as text, in the shown unit."""
    if estimate.interval is None:
        is_few = estimate.n is not None and estimate.n < FEW
        return f"no interval, n = {estimate.n}" if is_few else "no interval"
    low, high = estimate.interval
    return f"[{measure.shown(low)}, {measure.shown(high)}]"
