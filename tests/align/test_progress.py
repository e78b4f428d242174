"""Phases on a terminal and in a log, by a clock that the test moves."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from align import progress as module
from align.progress import clear_bars, progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "now", found)
    return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the logger `align` is told, where stderr is no terminal."""
    monkeypatch.setattr(module, "console", lambda: Console(file=io.StringIO()))
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("align")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Iterator[Terminal]:
    screen = Terminal()
    drawn = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(module, "console", lambda: drawn)
    monkeypatch.setenv("RANK", "0")
    yield screen
    clear_bars()


def test_a_short_phase_says_nothing(clock: Clock, lines: list[str]) -> None:
    with progress("short", 4) as advance:
        for _ in range(4):
            clock.at += 1.0
            advance()
    assert lines == []


def test_a_long_phase_says_itself_at_once_then_every_half_minute_and_at_the_end(
    clock: Clock, lines: list[str]
) -> None:
    with progress("generate", 100) as advance:
        for _ in range(100):
            clock.at += 1.0
            advance(1, tokens=250)
    # After 5 s; 30 s after the last line each; the end.
    assert lines == [
        "generate: 5/100 rows, 250 tokens/s, 2 min left",
        "generate: 35/100 rows, 250 tokens/s, 65 s left",
        "generate: 65/100 rows, 250 tokens/s, 35 s left",
        "generate: 95/100 rows, 250 tokens/s, 5 s left",
        "generate: 100 rows in 2 min, 250 tokens/s",
    ]


def test_tokens_alone_make_a_line_before_the_first_row_is_done(
    clock: Clock, lines: list[str]
) -> None:
    with progress("generate", 64) as advance:
        clock.at += 6.0
        advance(0, tokens=600)
        assert lines == ["generate: 0/64 rows, 100 tokens/s"]


def test_what_an_earlier_run_did_counts_as_done_and_not_in_the_rate(
    clock: Clock, lines: list[str]
) -> None:
    with progress("mcts", 100, "units", done=80) as advance:
        clock.at += 10.0
        advance(5)
    assert lines[0] == "mcts: 85/100 units, 0.5 units/s, 30 s left"


def test_one_line_speaks_for_the_phases_within(clock: Clock, lines: list[str]) -> None:
    with progress("mcts", 8, "units"), progress("simulations", 500, "simulations") as inner:
        for _ in range(20):
            clock.at += 1.0
            inner(2)
    assert lines == [
        "mcts: 0/8 units; simulations: 10/500 simulations, 2 simulations/s, 4 min left",
        "mcts: 0 units in 20 s",
    ]


def test_short_phases_within_a_long_one_add_no_lines_of_their_own(
    clock: Clock, lines: list[str]
) -> None:
    with progress("outer", 20) as outer:
        for _ in range(20):
            with progress("inner", 10) as inner:
                clock.at += 2.0
                inner(10)
            outer()
    said = [line for line in lines if line.startswith("inner")]
    assert said == []
    assert len(lines) == 3  # at 6 s, at 36 s, the end


def test_an_error_is_no_end(clock: Clock, lines: list[str]) -> None:
    def failing() -> None:
        with progress("outer", 2) as advance:
            clock.at += 6.0
            advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert [line for line in lines if " in " in line] == []
    with progress("next", 1) as advance:
        assert advance.within is None


def test_a_note_stands_behind_the_count(clock: Clock, lines: list[str]) -> None:
    with progress("train", 10, "steps") as advance:
        clock.at += 6.0
        advance(1, note="loss 0.69")
    assert lines[0].startswith("train: 1/10 steps, loss 0.69, ")


def test_threads_have_phases_of_their_own_and_lose_no_count(clock: Clock, lines: list[str]) -> None:
    counted: list[tuple[int, bool]] = []

    def work() -> None:
        with progress("in a thread", 1000) as own:
            for _ in range(1000):
                own()
                shared()
            counted.append((own.done, own.within is None))

    with progress("shared", 4000) as shared:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shared.done == 4000
    assert counted == [(1000, True)] * 4


def test_a_silent_logger_hears_nothing(clock: Clock, lines: list[str]) -> None:
    logging.getLogger("align").setLevel(logging.WARNING)
    with progress("generate", 2) as advance:
        clock.at += 60.0
        advance()
    assert lines == []


def test_on_a_terminal_bars_stand_below_each_other_and_go(
    clock: Clock, lines: list[str], terminal: Terminal
) -> None:
    with progress("search", 4, "units") as outer:
        clock.at += 1.0
        outer(1)
        with progress("generate", 8) as inner:
            clock.at += 1.0
            inner(2, tokens=50)
            bars = module._bars._shown
            assert bars is not None
            words = [task.fields["words"] for task in bars.tasks]
            assert words == [
                "search: 1/4 units, 1 units/s, 3 s left",
                "generate: 2/8 rows, 50 tokens/s, 3 s left",
            ]
            assert lines == []
        assert len(bars.tasks) == 1
    assert module._bars._shown is None
    assert "search" in terminal.getvalue()


def test_other_ranks_draw_no_bars(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress("search", 4) as advance:
        clock.at += 1.0
        advance(1)
        assert module._bars._shown is None


def test_a_bar_that_an_error_left_can_be_cleared(clock: Clock, terminal: Terminal) -> None:
    left = progress("train", 4)
    advance = left.__enter__()
    clock.at += 1.0
    advance(1)
    assert module._bars._shown is not None
    clear_bars()
    assert module._bars._shown is None
    advance(1)  # whoever still counts does no harm
    left.__exit__(None, None, None)
