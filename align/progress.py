"""How far a long phase is: a bar on a terminal, a line now and then in a log.

    with progress("generate", total=64) as advance:
        for row in rows:
            ...
            advance(1, tokens=len(row))

Phases may stand within each other, in threads beside each other, and go on where a killed run
stopped (`done`). On a terminal each is a bar with its count, tokens per second and time left. In a
log the outermost phase speaks for those within: nothing in its first seconds, then a line at most
every half a minute, and one at the end. Nobody hears anything where the logger `align` is silent.

Time is looked at in `advance` only, so a phase that is long between two calls says nothing there:
call it with `advance(0, tokens=n)` where tokens come before rows are done.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

logger = logging.getLogger("align")

SILENT = 5.0  # seconds in which a log hears nothing of a phase
EVERY = 30.0  # seconds between two lines of a log
SHORTEST_BAR = 0.5  # seconds; a bar that is gone at once only flickers


def now() -> float:
    """Seconds of a clock that never goes back."""
    return time.monotonic()


@cache
def console() -> Console:
    """Where bars and log lines stand; one console, so that lines appear above the bars."""
    return Console(stderr=True)


def has_bars() -> bool:
    """Whether a phase is a bar: on a terminal, in the first process, where `align` may speak."""
    is_first = os.environ.get("RANK", "0") == "0"
    return is_first and logger.isEnabledFor(logging.INFO) and console().file.isatty()


class Phase:
    """One phase while it is under way; call it to advance."""

    def __init__(
        self, title: str, total: int | None, unit: str, done: int, within: Phase | None
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = self._first = done
        self.tokens = 0
        self.note = ""
        self.within = within
        self.started = now()
        self._said: float | None = None
        self._inner: list[Phase] = []
        self._bar: TaskID | None = None
        self._lock = threading.RLock() if within is None else within.root._lock

    def __call__(self, n: int = 1, tokens: int = 0, *, note: str | None = None) -> None:
        """Counts what was done since the last call.

        Args:
            n: units; 0 where only tokens came, or only time passed.
            tokens: that were made or read.
            note: what to say behind the numbers from now on, such as a loss.
        """
        with self._lock:
            self.count(n, tokens, note=note)
            self._show()

    def count(self, n: int = 1, tokens: int = 0, *, note: str | None = None) -> None:
        """Counts and shows nothing yet."""
        with self._lock:
            self.done += n
            self.tokens += tokens
            if note is not None:
                self.note = note

    def say(self) -> None:
        """Writes the line now; the next one by the clock waits its time."""
        with self._lock:
            self.root._said = now()
            logger.info("%s", self.root.chain())

    def resume(self, done: int, *, note: str | None = None) -> None:
        """Counts what an earlier run did; the rate and the clock begin here."""
        with self._lock:
            self.done = self._first = done
            self.started = now()
        self(0, note=note)

    @property
    def root(self) -> Phase:
        """The outermost phase around this one."""
        return self if self.within is None else self.within.root

    @property
    def seconds(self) -> float:
        """Since it began."""
        return now() - self.started

    def __str__(self) -> str:
        """`generate: 12/64 rows, 279 tokens/s, 40 s left`."""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        rates, left = self._rates(), self._seconds_left()
        parts = [f"{count} {self.unit}", *([self.note] if self.note else []), *rates]
        if left is not None:
            parts.append(f"{in_words(left)} left")
        return f"{self.title}: {', '.join(parts)}"

    def _rates(self) -> list[str]:
        seconds = self.seconds
        if seconds <= 0:
            return []
        if self.tokens:
            return [f"{rounded(self.tokens / seconds)} tokens/s"]
        fresh = self.done - self._first
        return [f"{rounded(fresh / seconds)} {self.unit}/s"] if fresh else []

    def _seconds_left(self) -> float | None:
        fresh = self.done - self._first
        if self.total is None or fresh < 1 or self.done >= self.total:
            return None
        return self.seconds / fresh * (self.total - self.done)

    def _show(self) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        if has_bars():
            if self._bar is None and self.seconds >= SHORTEST_BAR:
                self._bar = _bars.add(self)
            elif self._bar is not None:
                _bars.update(self._bar, self)
            return
        root = self.root
        due = SILENT if root._said is None else root._said + EVERY - root.started
        if root.seconds >= due:
            root.say()

    def chain(self) -> str:
        """This phase and the newest within it, in one line."""
        inner = f"; {self._inner[-1].chain()}" if self._inner else ""
        return f"{self}{inner}"

    def open(self) -> None:
        """Takes its place within the phase around it."""
        if self.within is not None:
            with self._lock:
                self.within._inner.append(self)

    def close(self, *, is_whole: bool) -> None:
        """Leaves it, and says how long it took where that was long.

        Args:
            is_whole: it ended by itself and not by an error.
        """
        with self._lock:
            if self._bar is not None:
                _bars.remove(self._bar)
            if self.within is not None:
                self.within._inner.remove(self)
            # Within another phase an end is worth a line only where it is as rare as one.
            shortest = SILENT if self.within is None else EVERY
            if is_whole and self.seconds >= shortest:
                parts = [f"{self.done} {self.unit} in {in_words(self.seconds)}"]
                parts += [*([self.note] if self.note else []), *self._rates()]
                logger.info("%s: %s", self.title, ", ".join(parts))


class _Bars:
    """The bars of this process: one live display while there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: Progress | None = None

    def add(self, phase: Phase) -> TaskID:
        with self._lock:
            if self._shown is None:
                self._shown = Progress(
                    SpinnerColumn(),
                    BarColumn(bar_width=24),
                    TextColumn("{task.fields[words]}", markup=False),
                    console=console(),
                    transient=True,
                    # What is piped elsewhere must not be written on the terminal.
                    redirect_stdout=sys.stdout.isatty(),
                    refresh_per_second=4,
                )
                self._shown.start()
            return self._shown.add_task(
                phase.title, total=phase.total, completed=phase.done, words=str(phase)
            )

    def update(self, bar: TaskID, phase: Phase) -> None:
        with self._lock:
            if self._shown is not None and bar in self._shown.task_ids:
                self._shown.update(bar, total=phase.total, completed=phase.done, words=str(phase))

    def remove(self, bar: TaskID) -> None:
        with self._lock:
            if self._shown is None or bar not in self._shown.task_ids:
                return
            self._shown.remove_task(bar)
            if not self._shown.task_ids:
                self._shown.stop()
                self._shown = None

    def clear(self) -> None:
        with self._lock:
            if self._shown is not None:
                self._shown.stop()
                self._shown = None


_bars = _Bars()
_newest: ContextVar[Phase | None] = ContextVar("newest phase", default=None)


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "rows", *, done: int = 0
) -> Iterator[Phase]:
    """Shows how far a phase is while the block runs.

    Args:
        title: what is done.
        total: units there are in all; None where nobody knows.
        unit: what is counted, in the plural.
        done: units that an earlier run did; they count as done and not in the rate.
    """
    phase = Phase(title, total, unit, done, _newest.get())
    token = _newest.set(phase)
    phase.open()
    is_whole = False
    try:
        yield phase
        is_whole = True
    finally:
        phase.close(is_whole=is_whole)
        _newest.reset(token)


def clear_bars() -> None:
    """Takes the bars away, whoever left them: before an error is printed."""
    _bars.clear()


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def rounded(n: float) -> str:
    """Three digits: `0.21`, `279`, `12.3k`, `1.2M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            return f"{n / (1000 if letter == 'k' else size):.3g}{letter}"
    return f"{n:.3g}" if n < 1000 else f"{n:.0f}"
