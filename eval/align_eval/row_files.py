"""Lists of JSON objects in files: JSON, JSON Lines, gzip of either; errors name file and row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.problems import RowProblem
from align.errors import DataError
from align.runs.folder import write_atomically

Row = dict[str, Any]


def read_rows(
    path: Path, needs: Sequence[str] = (), columns: Mapping[str, str] = AS_THEY_ARE
) -> list[Row]:
    """The objects of a file whose name ends in .json or .jsonl, with or without .gz.

    Args:
        path: a JSON list, or one object per line.
        needs: keys that every row must have.
        columns: as `align.data.column_map.with_columns` takes them.

    Raises:
        DataError: the file cannot be read, or a row is no object or lacks a key.
    """
    text = _text(path)
    name = path.name.removesuffix(".gz")
    rows: list[tuple[int, Any]]
    try:
        if name.endswith(".jsonl"):
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    rows.append((number, json.loads(line)))
        else:
            rows = list(enumerate(json.loads(text), start=1))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path} is no {'JSON Lines file' if name.endswith('.jsonl') else 'JSON list'} "
            f"({type(error).__name__}). Write one object per "
            f"{'line' if name.endswith('.jsonl') else 'item'}."
        ) from error
    if columns:
        rows = list(_renamed(path, rows, columns))
    for number, row in rows:
        missing = [key for key in needs if key not in row] if isinstance(row, dict) else ["{}"]
        if missing:
            has = f" and has {', '.join(map(str, row))}" if isinstance(row, dict) and row else ""
            raise DataError(
                f"{path}:{number}: the row has no {', '.join(missing)}; it needs "
                f"{', '.join(needs) or 'to be an object'}{has}."
            )
    return [row for _, row in rows]


def _renamed(
    path: Path, rows: Sequence[tuple[int, Any]], columns: Mapping[str, str]
) -> Iterator[tuple[int, Any]]:
    objects = [(str(path), number, row) for number, row in rows if isinstance(row, dict)]
    if len(objects) < len(rows):
        yield from rows  # the caller says which row is none
        return
    for _, number, row in with_columns(objects, columns):
        if isinstance(row, RowProblem):
            raise DataError(
                f"{path}:{number}: nothing at {row.field}: {row.detail}. Mend `columns`, or leave "
                "such rows out of the file."
            )
        yield number, dict(row)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.name.endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or "no gzip file"
        raise DataError(f"{path} cannot be read ({reason}). Name a file that is there.") from error
    except (EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is damaged or not UTF-8 ({type(error).__name__}). Put a whole copy back."
        ) from error


def by_key(rows: Iterable[Row], key: str, where: str) -> dict[str, Row]:
    """Rows by the text under `key`.

    Raises:
        DataError: two rows have the same.
    """
    found: dict[str, Row] = {}
    for number, row in enumerate(rows, start=1):
        if row[key] in found:
            raise DataError(
                f"{where}: row {number} has the {key} of an earlier row, so the two cannot be told "
                "apart. Leave one of them out."
            )
        found[row[key]] = row
    return found


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON list, indented as the benchmarks' own files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_atomically(path, "".join(line + "\n" for line in lines))
