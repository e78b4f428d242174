"""Rows of JSON and JSON Lines files, read so that one broken line costs one row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.data.packed_files import bytes_of
from align.data.problems import RawRow, RowProblem
from align.errors import DataError


class _DoubledKeyError(ValueError):
    pass


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        raise _DoubledKeyError
    return found


# Refuses an object that gives a key twice.
DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """One object per line. The row number is the line number; blank lines are no rows."""
    with bytes_of(path) as file:
        # Binary lines end at \n only; text mode's splitlines would also break at U+2028.
        for number, line in enumerate(file, start=1):
            stripped = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if stripped:
                yield str(path), number, _parse_line(stripped)


def read_json(path: Path) -> Iterator[RawRow]:
    """A list of objects, or JSON Lines under the name .json."""
    with bytes_of(path) as file:
        content = file.read()
    # Bytes that are no UTF-8 become lone surrogates, so they spoil their own row and no other.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] != "[":
        if text.strip() and isinstance(
            _parse_line(text.strip().splitlines()[0].encode("utf-8", errors="surrogateescape")),
            RowProblem,
        ):
            _refuse_one_object(path, text)
        yield from read_json_lines(path)
        return
    yield from _read_json_list(path, text, start + 1)


def _refuse_one_object(path: Path, text: str) -> None:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        raise DataError(
            f"{path} holds one JSON object with the keys {', '.join(list(whole)[:8])}, not a list "
            "of rows: write a list of objects, or one object per line."
        )


def _read_json_list(path: Path, text: str, at: int) -> Iterator[RawRow]:
    space = re.compile(r"[ \t\r\n]*")

    def skip(position: int) -> int:
        match = space.match(text, position)
        assert match is not None
        return match.end()

    number = 0
    at = skip(at)
    if text[at : at + 1] == "]":
        return
    while True:
        number += 1
        try:
            value, at = DECODER.raw_decode(text, at)
        except _DoubledKeyError:
            # The decoder does not say where the element ends; without the check it does.
            value, at = json.JSONDecoder().raw_decode(text, at)
            value = RowProblem("unreadable", "row", "a key is given twice")
        except (json.JSONDecodeError, RecursionError) as error:
            raise _broken_list(path, number, text, getattr(error, "pos", at)) from error
        yield str(path), number, value if isinstance(value, RowProblem) else _row_of(value)
        at = skip(at)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise _broken_list(path, number + 1, text, at)
        at = skip(at + 1)


def _broken_list(path: Path, number: int, text: str, at: int) -> DataError:
    line = text.count("\n", 0, at) + 1
    return DataError(
        f"{path} is one JSON list, and it is broken at row {number} (line {line}), so no row "
        "behind it can be found: mend that place, or write one object per line (.jsonl), where a "
        "broken row costs only itself."
    )


def _row_of(value: object) -> Mapping[str, Any] | RowProblem:
    if isinstance(value, dict):
        return value
    return RowProblem("wrong_type", "row", f"{type(value).__name__} instead of an object")


def _parse_line(line: bytes) -> Mapping[str, Any] | RowProblem:
    try:
        return _row_of(DECODER.decode(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return RowProblem("unreadable", "line", f"byte {error.start + 1} is no UTF-8")
    except json.JSONDecodeError as error:
        return RowProblem("unreadable", "line", f"{error.msg} at character {error.pos + 1}")
    except _DoubledKeyError:
        return RowProblem("unreadable", "line", "a key is given twice")
    except (RecursionError, ValueError) as error:
        # ValueError: an integer of more digits than Python converts.
        return RowProblem("unreadable", "line", type(error).__name__)
