"""What the stages of a loop leave on disk: rows as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_lines(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line, always in the same spelling."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """What `write_lines` wrote."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
