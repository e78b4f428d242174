"""An append-only journal: one JSON object per line, each with a checksum, one writer.

A line is acknowledged when `append` returns: it is then on disk. An unfinished last line, which a
crash leaves behind, is dropped when the journal is opened; damage anywhere else is an error that
names its line, because dropping it would rewrite what happened. A record counts only if its line
is, byte for byte, what `append` writes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.errors import DataError, MachineError, NumericalError, RecipeError

logger = logging.getLogger(__name__)


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, sort_keys=True, allow_nan=False)
    check = hashlib.sha256(body.encode()).hexdigest()[:16]
    return (json.dumps({"sha256": check, **json.loads(body)}) + "\n").encode()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a complete line, or None where it is not what was written."""
    try:
        record = json.loads(line)
        record.pop("sha256")
        return record if _line(record) == line else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal in their order; an unfinished last line is left out.

    Raises:
        DataError: a line is not what was written; the text names the line.
    """
    for record, _ in _scan(path):
        yield record


def _scan(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each record with the offset at which its line ends [bytes]."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            record = _record(line)
            if record is None:
                raise DataError(
                    f"{path}:{number}: this line is not what was written: the file was edited or "
                    "its disk is failing. Put the file back from a copy. Where there is none, "
                    f"delete line {number} and run the same command again: a loop writes a line "
                    "anew for each whole result that has none."
                )
            end += len(line)
            yield record, end


class Ledger:
    """The one writer of a journal, as a context manager.

    Args:
        path: of the `.jsonl` file; made when absent. `.<name>.lock` beside it says who writes.

    Raises:
        RecipeError: another process, or this one, already writes in it.
        DataError: a line other than an unfinished last one is damaged.
        MachineError: its disk cannot lock files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder = path.with_name(f".{path.name}.lock")
        self._thread = threading.Lock()
        self._is_torn = False
        self._lock = self._take_lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._end = self._drop_unfinished_line()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> int:
        lock = os.open(self._holder, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            former = os.pread(lock, 1000, 0).decode(errors="replace")
            # flock ends with its process, so what still stands here is of one that was killed.
            if former:
                logger.warning("%s was left by %s, which ended early.", self.path, former)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(lock, 1000, 0).decode(errors="replace") or "another process"
            os.close(lock)
            raise RecipeError(
                f"{self.path} is being written by {holder}. Wait for it, or give this run its own "
                "--run folder."
            ) from error
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MachineError(
                f"{self.path} cannot be locked ({error.strerror}). Give a --run folder on a disk "
                "that can lock files."
            ) from error
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _drop_unfinished_line(self) -> int:
        end = max((end for _, end in _scan(self.path)), default=0)
        rest = os.fstat(self._file).st_size - end
        if rest:
            os.ftruncate(self._file, end)
            logger.warning("%s: dropped an unfinished last line of %d bytes.", self.path, rest)
        os.fsync(self._file)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return end

    def append(self, step: str, seconds: float | None, about: Mapping[str, Any]) -> None:
        """Writes one line; it is on disk when this returns.

        Args:
            step: what was done.
            seconds: that it took; None where nobody measured it.
            about: whatever else belongs in the line, JSON-ready.

        Raises:
            NumericalError: a value is not finite.
        """
        record = {
            "step": step,
            "at": round(time.time(), 3),
            "seconds": None if seconds is None else round(seconds, 3),
            **about,
        }
        try:
            line = _line(record)
        except ValueError as error:
            raise NumericalError(
                f"{self.path} would get a number that is not finite in the line of {step!r}, so it "
                f"was not written ({error}). Look at what {step!r} reports."
            ) from error
        with self._thread:
            if self._is_torn:
                os.ftruncate(self._file, self._end)
            self._is_torn = True
            written = 0
            # A disk that fills up takes a part of the line.
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
            self._end += len(line)
            self._is_torn = False

    def records(self) -> Iterator[dict[str, Any]]:
        """Everything that was written so far, oldest first."""
        return read_records(self.path)

    def close(self) -> None:
        """Lets another process write."""
        os.close(self._file)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
