"""The user's own reader of rows: a function in place of a format's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from align.data.problems import RawRow, RowProblem
from align.own_failure import own_place

# One row of the source -> the same in TRL's preference columns (`chosen` and `rejected`, with or
# without `prompt`, and the optional columns of `PreferencePair`), or None to leave the row out.
RowReader = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def rows_through(reader: RowReader, rows_in_place: Iterable[RawRow]) -> Iterator[RawRow]:
    """`rows_in_place` as `reader` reads them; a row that it cannot read becomes a `RowProblem`."""
    for place, number, row in rows_in_place:
        yield place, number, row if isinstance(row, RowProblem) else _read(reader, row)


def name_of(reader: RowReader) -> str:
    """Module and name of a reader, for messages."""
    named = reader if hasattr(reader, "__qualname__") else type(reader)
    return f"{named.__module__}.{named.__qualname__}"


def _read(reader: RowReader, row: Mapping[str, Any]) -> Mapping[str, Any] | RowProblem:
    try:
        # The reader is not this library's: nothing is sure about what it gives.
        found: object = reader(row)
    except Exception as error:
        # The error's own words may hold the row's text.
        place = own_place(error)
        detail = f"{type(error).__name__} in {name_of(reader)}{f' ({place})' if place else ''}"
        return RowProblem("reader_failed", "row", detail)
    if found is None:
        return RowProblem("left_out", "row", f"{name_of(reader)} gave None")
    if not isinstance(found, Mapping):
        detail = f"{type(found).__name__} from {name_of(reader)} instead of a mapping"
        return RowProblem("wrong_type", "row", detail)
    return found
