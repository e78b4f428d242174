"""How far a pipeline is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from align_data.chunks import Progress

logger = logging.getLogger("align")

EVERY = 30.0  # seconds between two lines of a log


class ProgressLines:
    """Hears a pipeline's progress and shows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0

    def __enter__(self) -> ProgressLines:
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[words]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """After every chunk."""
        words = in_words(progress)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self.name, total=progress.units, words=words)
            self._bar.update(self._task, completed=progress.done, words=words)
        elif time.monotonic() - self._last > EVERY or progress.done == progress.units:
            self._last = time.monotonic()
            logger.info("%s: %s", self.name, words)


def in_words(progress: Progress) -> str:
    """`120/500 units, 310 pairs, 41 dropped, 1.2M tokens, 3.4 units/s, 2 min left`."""
    parts = [f"{progress.done}/{progress.units} units"]
    counts = dict(progress.counts)
    for name in ("pairs", "dropped"):
        parts.append(f"{counts.pop(name, 0)} {name}")
    parts += [f"{_short(n)} {name.replace('_', ' ')}" for name, n in sorted(counts.items()) if n]
    if progress.rate is not None:
        parts.append(f"{progress.rate:.3g} units/s")
    left = progress.seconds_left
    if left is not None and progress.done < progress.units:
        parts.append(f"{_time(left)} left")
    return ", ".join(parts)


def _short(n: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if n >= size:
            return f"{n / (1000 if letter == 'k' else size):.3g}{letter}"
    return str(n)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
