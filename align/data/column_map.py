"""Columns of foreign files under the names that are read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from align.data.problems import RawRow, RowProblem

AS_THEY_ARE: Mapping[str, str] = MappingProxyType({})


def with_columns(rows: Iterable[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    """The rows with further columns, each taken from somewhere else in its row.

    Args:
        rows: of a source.
        columns: name that is read -> where it stands: a column, or a path into one with dots, such
            as `turns.0` or `messages.1.content`. A column whose own name has dots is found too.

    Yields:
        Rows; one where such a place is missing is a problem of that row.
    """
    for source, number, row in rows:
        if isinstance(row, RowProblem) or not columns:
            yield source, number, row
            continue
        try:
            found = {name: _value_at(row, where) for name, where in columns.items()}
        except RowProblem as problem:
            yield source, number, problem
            continue
        # Either is what is asked: the recipe's word outweighs a column of the row.
        asked = {"prompt"} if "question" in found else set[str]()
        yield source, number, {k: v for k, v in row.items() if k not in asked} | found


def _value_at(row: Mapping[str, Any], where: str) -> Any:
    if where in row:
        return row[where]
    value: Any = row
    for part in where.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            held = f"it has {', '.join(map(str, row))}" if row else "it is empty"
            raise RowProblem("missing_field", where, f"there is no such place in the row; {held}")
    return value
