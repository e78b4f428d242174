"""What the stages of a loop's rounds said, read from what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.loops.place import read_manifest
from align.runs.manifest import MANIFEST


def history(run: Path, rounds: int | None = None) -> list[dict[str, Any]]:
    """What each stage of each round said, in their order, without clocks.

    Args:
        run: the loop's folder; it may be under way.
        rounds: so many at most; None takes all that are there.
    """
    found: list[dict[str, Any]] = []
    for folder in sorted((run / "rounds").glob("[0-9]*/[0-9]*")):
        if not (folder / MANIFEST).is_file():
            continue
        if rounds is not None and int(folder.parent.name) > rounds:
            break
        about = read_manifest(folder)["about"]
        stage = about["stage"]
        found.append({"round": stage["round"], "stage": stage["name"], **about["about"]})
    return found
