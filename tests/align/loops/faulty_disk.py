"""A disk that fails at one chosen point: every write, flush, rename, creation and removal counts.

Patches what Python offers for changing files, below everything the library calls. Once the power
is out nothing changes any more, so that no `finally` tidies up after a death that leaves no time
for it; open files are closed, as the kernel does.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class PowerCut(BaseException):
    """The process is dead from here on."""


class FaultyDisk:
    """Counts the points, and fails at one of them.

    Args:
        inside: only changes below this folder count.
        point: 1-based; 0 never fails.
        fault: "cut": dead before it is done. "torn": dead after a part of it, where a file is
            written. "lost": dead, and what was not flushed is gone: contents and renames.
            "full": `OSError`, once, and everything goes on.
    """

    def __init__(self, inside: Path, point: int = 0, fault: str = "cut") -> None:
        self.inside, self.point, self.fault = inside, point, fault
        self.points: list[str] = []
        self.is_dead = False
        self._open: set[int] = set()
        self._unflushed: set[int] = set()
        self._renames: list[tuple[Path, Path]] = []

    def reach(self, what: str, path: Any, tear: Callable[[], object] | None = None) -> None:
        """One point; `tear` does a part of it."""
        if self.is_dead:
            raise PowerCut
        self.points.append(f"{what} {Path(os.fsdecode(path)).name}")
        if len(self.points) != self.point:
            return
        if self.fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        if self.fault == "torn" and tear is not None:
            tear()
        self.is_dead = True
        raise PowerCut

    def counts(self, path: Any) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return Path(os.fsdecode(path)).is_relative_to(self.inside) or not os.path.isabs(path)

    @contextmanager
    def attached(self, patch: pytest.MonkeyPatch) -> Iterator[FaultyDisk]:
        try:
            with patch.context() as inner:
                self._attach(inner)
                yield self
        finally:
            for descriptor in self._open:
                os.close(descriptor)
            if self.is_dead and self.fault == "lost":
                self._lose()

    def _lose(self) -> None:
        for source, target in reversed(self._renames):
            if target.exists() and not source.exists():
                os.replace(target, source)
        for path in self.inside.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._unflushed:
                os.truncate(path, 0)

    def _attach(self, patch: pytest.MonkeyPatch) -> None:
        real_open, real_os_open, real_close = io.open, os.open, os.close
        real_write, real_replace = os.write, os.replace

        def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            changes = set(mode) & set("wxa+") and not isinstance(file, int) and self.counts(file)
            if not changes:
                return real_open(file, mode, *args, **kwargs)

            def tear() -> None:
                with real_open(file, "ab") as torn:
                    torn.write(b"\0torn")

            self.reach(f"open for {mode}", file, tear)
            opened = real_open(file, mode, *args, **kwargs)
            self._unflushed.add(os.fstat(opened.fileno()).st_ino)
            return opened

        def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and self.counts(path) and not os.path.exists(path):
                self.reach("create", path)
            descriptor = real_os_open(path, flags, *args, **kwargs)
            self._open.add(descriptor)
            return descriptor

        def close(descriptor: int) -> None:
            self._open.discard(descriptor)
            real_close(descriptor)

        def write(descriptor: int, data: bytes) -> int:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode) or not self.counts(descriptor):
                return real_write(descriptor, data)
            self.reach("write", b"%d" % descriptor, lambda: real_write(descriptor, data[:7]))
            self._unflushed.add(os.fstat(descriptor).st_ino)
            return real_write(descriptor, data)

        def fsync(descriptor: int) -> None:
            # Not done: no power is cut, and a real one takes most of the test's time.
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.reach("fsync", path)
            self._unflushed.discard(os.fstat(descriptor).st_ino)
            self._renames = [pair for pair in self._renames if pair[1].parent != path]

        def replace(source: Any, target: Any, **kwargs: Any) -> None:
            self.reach("rename", target)
            real_replace(source, target, **kwargs)
            if Path(target).is_dir():
                self._renames.append((Path(source), Path(target)))

        def point_before(name: str) -> None:
            real = getattr(os, name)

            def changed(path: Any, *args: Any, **kwargs: Any) -> Any:
                # Making a folder that is there, which pathlib tries often, changes nothing.
                if self.counts(path) and not (name == "mkdir" and os.path.isdir(path)):
                    self.reach(name, path if not isinstance(path, int) else b"%d" % path)
                return real(path, *args, **kwargs)

            patch.setattr(os, name, changed)

        for name in ("mkdir", "rmdir", "unlink", "remove", "ftruncate", "truncate", "pwrite"):
            point_before(name)
        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)
        patch.setattr(os, "open", os_open)
        patch.setattr(os, "close", close)
        patch.setattr(os, "write", write)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "rename", replace)
