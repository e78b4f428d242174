"""SIGTERM and SIGINT end a loop in good order, and within 30 seconds whatever it is doing.

The first signal asks: the stage at hand may finish, and none is begun. After `GRACE` seconds, or
at a second signal, the stage is abandoned by an exception. Where even that does not come through,
because native code does not return, the process leaves after `LIMIT` seconds with the same exit
code. Nothing is lost that a kill would not lose: what was published is whole.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from align.errors import Interrupted

logger = logging.getLogger(__name__)

GRACE = 20.0  # seconds
LIMIT = 28.0  # seconds
# What the next run finds again.
KEPT = (
    "Finished stages are kept, and of the one at hand what it had stored: finished chunks, a "
    "server's answers, checkpoints."
)
AGAIN = 3.0  # seconds between two attempts to abandon a stage that swallows the exception


class StopSignal:
    """Holds the two signals while it is entered. Outside the main thread it does nothing.

    Attributes:
        requested: name of the signal that asked to stop; None as long as there was none. A stage
            that takes long looks at it between two pieces of its work.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._number = 0
        self._is_abandonable = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            # A pipe, because a handler may run while this very thread holds any lock.
            self._read, self._write = os.pipe()
            self._watcher = threading.Thread(target=self._watch, name="stop", daemon=True)
            self._watcher.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._former:
            return
        os.write(self._write, b"e")
        self._watcher.join()
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
        os.close(self._read)
        os.close(self._write)

    def check(self, where: str) -> None:
        """Raises Interrupted when a signal has asked to stop; `where` says before what."""
        if self.requested is not None:
            raise Interrupted(
                f"Stopped by {self.requested} before {where}; everything before it is kept. Run "
                "the same command again to go on."
            )

    @contextmanager
    def abandonable(self) -> Generator[None]:
        """Code that the exception may end at any point."""
        self._is_abandonable = True
        try:
            yield
        finally:
            self._is_abandonable = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested, self._number = signal.Signals(number).name, number
            os.write(self._write, b"s")
        elif self._is_abandonable:
            raise Interrupted(
                f"Stopped by {self.requested} in the middle of a stage. {KEPT} Run the same "
                "command again to go on."
            )

    def _watch(self) -> None:
        if os.read(self._read, 1) == b"e":
            return
        end = time.monotonic() + LIMIT
        wait = GRACE
        while not select.select([self._read], [], [], wait)[0]:
            wait = min(AGAIN, end - time.monotonic())
            if wait <= 0:
                logger.error(
                    "Stopped by %s: the stage at hand did not end within %.0f s and was cut off. "
                    "%s Run the same command again to go on.",
                    *(self.requested, LIMIT, KEPT),
                )
                os._exit(Interrupted.exit_code)
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, self._number)
