"""What the stages of a loop leave on disk: rows as JSON lines, and who a folder is."""

from __future__ import annotations

import hashlib
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


def content_digest(path: str) -> str:
    """Sha256 over the files at a local path; a hub id is its own name."""
    found = Path(path).expanduser()
    if not found.exists():
        return path
    h = hashlib.sha256()
    files = sorted(f for f in found.rglob("*") if f.is_file()) if found.is_dir() else [found]
    for file in files:
        h.update(str(file.relative_to(found)).encode() + b"\0")
        with file.open("rb") as stream:
            h.update(hashlib.file_digest(stream, "sha256").digest())
    return h.hexdigest()
