"""Rows of CSV files, whose cells hold text, numbers, or messages as JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.data.formats.columns import ENDS, SCORES, TOKEN_IDS, TOKEN_WEIGHTS
from align.data.json_files import DECODER
from align.data.packed_files import bytes_of
from align.data.problems import RawRow, RowProblem
from align.errors import DataError


def read_csv(path: Path) -> Iterator[RawRow]:
    """A header and rows; messages, token weights and token ids are JSON in their cells."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with io.TextIOWrapper(
            bytes_of(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path} names a column twice in its header: rename one of them.")
            for number in itertools.count(1):
                try:
                    cells = next(lines)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield str(path), number, RowProblem("unreadable", "line", str(error)[:100])
                    continue
                if cells:
                    yield str(path), number, _csv_row(header, cells)
    finally:
        csv.field_size_limit(limit)


def _csv_row(header: list[str], cells: list[str]) -> Mapping[str, Any] | RowProblem:
    if len(cells) != len(header):
        return RowProblem(
            "unreadable", "line", f"{len(cells)} cells under {len(header)} column names"
        )
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    texts = ("prompt", "chosen", "rejected", "conversations", "conversation", "messages")
    numbers = {spelling for spellings in SCORES.values() for spelling in spellings}
    for name, cell in row.items():
        if name in texts:
            row[name] = _cell_messages(cell)
        elif not cell:
            row[name] = None
        elif name in numbers or name in TOKEN_WEIGHTS:
            try:
                row[name] = DECODER.decode(cell)
            except (ValueError, RecursionError):
                return RowProblem("bad_score", name, "no number")
        elif name in ENDS or name in TOKEN_IDS:
            try:
                # Python and pandas write True and False.
                row[name] = DECODER.decode(cell.lower())
            except (ValueError, RecursionError):
                return RowProblem("wrong_type", name, "no JSON")
    return row


def _cell_messages(cell: str) -> Any:
    """The messages that a cell holds as JSON, else its text."""
    if not cell.startswith(("[{", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    messages = value if isinstance(value, list) else [value]
    spellings = ({"role", "content"}, {"from", "value"})
    held = all(isinstance(m, dict) and any(s <= m.keys() for s in spellings) for m in messages)
    return value if held else cell
