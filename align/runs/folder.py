"""A run's folder: recipe, ledger, metrics and model; one process at a time writes in it.

recipe.yaml      every key of the recipe, resolved
pairs/           the rows that were trained on and held out, tokenised
checkpoints/     what an interrupted run goes on from
before.json      measured on the start policy
metrics.json     before, after, n, seed, versions, data
log_history.json the trainer's log
ledger.jsonl     one line per step that was done
model/           the finished model, its tokenizer and its card
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from align.errors import DataError, MachineError, NumericalError, RecipeError
from align.runs.ledger import Ledger


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, whole."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


# Keys that may change under a run: pushing is a later step, a loop goes on for more rounds, and a
# data set has the same rows whoever works on it.
FREE = ("hub:", "rounds:", "keep:", "work:")


def _changed_lines(was: str, now: str) -> list[str]:
    """Lines of two resolved recipes that differ, `-` or `+` before each, save the free keys'."""
    lines = difflib.unified_diff(_without_free(was), _without_free(now), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def _without_free(recipe_yaml: str) -> list[str]:
    kept: list[str] = []
    is_free = False
    for line in recipe_yaml.splitlines():
        if not line.startswith((" ", "-")):
            is_free = line.startswith(FREE)
        if not is_free:
            kept.append(line)
    return kept


def made_model(name: str) -> str:
    """The `model` folder of a run's folder; any other name as it is.

    So what one run made is what the next one names: `model_name_or_path: outputs/my-run`.

    Raises:
        RecipeError: the run has left no model.
    """
    folder = Path(name)
    if not (folder / "recipe.yaml").is_file():
        return name
    if not (folder / "model").is_dir():
        raise RecipeError(
            f"{name} is the folder of a run that has left no model yet. Run its command again, "
            "which goes on where it stopped; or name the folder of a model."
        )
    return str(folder / "model")


MADE = ("before.json", "checkpoints", "metrics.json", "model", "rounds")


class RunFolder:
    """A run's folder.

    Args:
        path: made when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._ledger: Ledger | None = None

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def ledger(self) -> Ledger:
        """The run's journal: opened by the first who asks, closed by `release`."""
        if self._ledger is None:
            self._ledger = Ledger(self.path / "ledger.jsonl")
        return self._ledger

    def claim(self, recipe_yaml: str) -> None:
        """Takes the folder for this process and writes the resolved recipe into it.

        The hub section may differ from the one that lies there: pushing is a step of its own, taken
        from the finished files.

        Raises:
            RecipeError: another process holds the folder, or it belongs to another recipe.
            MachineError: the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._keep(recipe_yaml)
        except BlockingIOError as error:
            self.release()
            raise RecipeError(
                f"Another process is writing in {self.path}. Wait for it, or give this run its own "
                "--run folder."
            ) from error
        except (FileExistsError, NotADirectoryError) as error:
            self.release()
            raise RecipeError(
                f"{self.path} cannot hold a run: it, or a folder above it, is a file. Give another "
                "--run folder."
            ) from error
        except OSError as error:
            self.release()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MachineError(
                f"The run's folder {self.path} cannot be used ({error.strerror or error}). Give a "
                "--run folder on a disk that can be written and locked."
            ) from error
        except BaseException:
            self.release()
            raise

    def _keep(self, recipe_yaml: str) -> None:
        stored = self.path / "recipe.yaml"
        if stored.is_file():
            was = stored.read_text(encoding="utf-8", errors="replace")
            changed = _changed_lines(was, recipe_yaml)
            # A run that stopped at its rows has made nothing that another recipe could be mixed
            # with: the user mends the recipe and goes on in the same folder.
            if changed and any((self.path / name).exists() for name in MADE):
                more = f"; and {len(changed) - 12} more" if len(changed) > 12 else ""
                raise RecipeError(
                    f"{self.path} holds a run of another recipe: {'; '.join(changed[:12])}{more} "
                    "(- was, + now). Give this run its own --run folder, or delete the old one."
                )
            if was == recipe_yaml:
                return
        write_atomically(stored, recipe_yaml)

    def release(self) -> None:
        """Lets another process have the folder."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_json(self, name: str, value: Any) -> None:
        """Writes strict JSON, whole or not at all.

        Raises:
            NumericalError: a value is not finite; no number stands for a failure.
        """
        try:
            text = json.dumps(value, indent=1, allow_nan=False)
        except ValueError as error:
            raise NumericalError(
                f"{self.path / name} would hold a number that is not finite, so it was not written "
                f"({error}). Look at the last steps of the training log; a lower "
                "train.learning_rate is the usual cure."
            ) from error
        write_atomically(self.path / name, text + "\n")

    def read_json(self, name: str) -> Any | None:
        """What `write_json` wrote, or None where nothing was.

        Raises:
            DataError: something else stands there.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path} is no longer the JSON that the run wrote ({error}). Delete it and run the "
                "same command again."
            ) from error

    def record(self, step: str, seconds: float, about: Mapping[str, Any]) -> None:
        """Appends one line to the ledger, on disk before it returns."""
        self.ledger.append(step, seconds, about)

    @contextmanager
    def recorded(self, step: str) -> Iterator[dict[str, Any]]:
        """Times what is done inside, and appends its line when that is done without an error.

        Yields:
            What else is to stand in the line.
        """
        about: dict[str, Any] = {}
        started = time.monotonic()
        yield about
        self.record(step, time.monotonic() - started, about)
