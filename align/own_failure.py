"""Whose mistake it is: what a user's own code raised is told with that code's file and line."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import ModuleType

# Files of what a recipe named by a path, or found in an installed package.
_own_files: set[str] = set()
OURS = ("align", "align_data", "align_eval")


def remember(module: ModuleType) -> None:
    """Takes a module for a user's own; built-in ones may be written as paths too and stay ours."""
    if module.__file__ and module.__name__.partition(".")[0] not in OURS:
        _own_files.add(module.__file__)


def own_place(error: BaseException) -> str | None:
    """`file:line` of the innermost of a user's own frames; None where there is none."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in _own_files]
    return f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else None


def own_failure(error: BaseException) -> str | None:
    """What a user's own code raised, in one paragraph; None where it raised nothing.

    A failure of what that code called counts as its own: both places are named.
    """
    place = own_place(error)
    if place is None:
        return None
    inner = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    what = (
        f"your own code raised {said}"
        if inner.filename in _own_files
        else f"what your own code calls here raised {said} ({inner.filename}:{inner.lineno})"
    )
    return (
        f"{place}: {what}. Mend that and run the same command again: what was finished is kept. "
        "--debug shows the whole trace."
    )


def _short(file: str) -> str:
    """As it is seen from where the command was given, where it lies below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
