"""Processes that need not import first, for tests that kill many of them."""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests import tiny_loops


class Forked:
    """Runs one command of `align` on one recipe, in processes that have imported everything."""

    def __init__(self, recipe: Path, root: Path, cache: Path, *command: str) -> None:
        self.recipe = recipe
        self.command = command
        self.server = subprocess.Popen(
            [sys.executable, str(root / "tests/faults/forked_align.py")],
            env=tiny_loops.environment(root, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, run: Path, *changes: str) -> int:
        """Id of a process that has begun."""
        run.parent.mkdir(exist_ok=True)
        words = [*self.command, str(self.recipe), *changes, "--run", str(run)]
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([f"{run}.log", *words]) + "\n")
        self.server.stdin.flush()
        return int(self._line())

    def ended(self) -> int:
        """Exit code of the process that was started last."""
        return int(self._line())

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def finish(self, run: Path, *changes: str) -> float:
        """Runs to the end; the seconds it took."""
        began = time.monotonic()
        self.start(run, *changes)
        assert self.ended() == 0, Path(f"{run}.log").read_text()[-4000:]
        return time.monotonic() - began

    def close(self) -> None:
        self.server.communicate()
