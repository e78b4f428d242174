"""All that the terminal shows of runs: rounds of loops, before and after, or how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from align.report.measures import RunMetrics, read_json, read_metrics
from align.report.rounds import rounds_table
from align.report.table import table

# Log key -> what it is called, its unit.
LOGGED = {
    "loss": ("loss", ""),
    "rewards/margins": ("reward margin", ""),
    "rewards/accuracies": ("reward accuracy", "fraction"),
    "logratios/chosen": ("chosen log-ratio", "nats, to the frozen policy"),
    "logratios/rejected": ("rejected log-ratio", "nats, to the frozen policy"),
    "grad_norm": ("gradient norm", ""),
}


def summary(runs: Sequence[Path]) -> RenderableType:
    """The tables of one or several runs; of a loop under way, its rounds so far.

    Raises:
        DataError: a run has neither rounds nor a good `metrics.json`.
    """
    pieces: list[RenderableType] = []
    finished: list[Path] = []
    for run in runs:
        rounds = rounds_table(run)
        if rounds is not None:
            pieces.append(rounds)
        if rounds is None or (Path(run) / "metrics.json").is_file():
            finished.append(run)
        else:
            pieces.append(Text(f"{run} has not finished: run its command again to go on."))
    found = [read_metrics(run) for run in finished]
    measured = [run for run in found if run.before or run.after]
    if measured:
        pieces.append(table(measured))
    for path, run in zip(finished, found, strict=True):
        if run not in measured:
            pieces += _unmeasured(path, run)
    return Group(*pieces)


def _unmeasured(path: Path, run: RunMetrics) -> list[RenderableType]:
    """What can be said of a run that measured nothing, as evaluate.suite asked."""
    counts = ", ".join(f"{name} {_count(value)}" for name, value in run.data.items() if value)
    said = f"{run.name} measured nothing before and after (evaluate.suite is empty)."
    pieces: list[RenderableType] = [Text(said + (f" Pairs: {counts}." if counts else ""))]
    log = Path(path) / "log_history.json"
    if log.is_file():
        pieces.insert(0, training_table(run.name, read_json(log)))
    return pieces


def training_table(name: str, log: Sequence[Mapping[str, Any]]) -> Table:
    """First and last logged numbers of a training run."""
    shown = Table(title=Text(f"Training of {name}"))
    for column in ("logged", "first", "last"):
        shown.add_column(column, justify="left" if column == "logged" else "right")
    for key, (label, unit) in LOGGED.items():
        steps = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
        if steps:
            cells = [f"{value:.4g} (step {step})" for step, value in (steps[0], steps[-1])]
            shown.add_row(Text.assemble(label, (f"  {unit}" if unit else "", "dim")), *cells)
    return shown


def _count(value: Any) -> str:
    if isinstance(value, Mapping):
        reasons: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return f"({', '.join(f'{reason} {n}' for reason, n in reasons.items())})"
    return str(value)
