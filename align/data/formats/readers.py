"""The readers of public formats by name, and which of them reads a source.

auto      decided by the columns of the first rows
trl       `chosen` and `rejected`, plain or messages, with or without `prompt`
hh        `chosen` and `rejected` as transcripts of "\\n\\nHuman:" and "\\n\\nAssistant:" turns
sharegpt  a dialogue in `conversations` or `messages`, one answer each in `chosen` and `rejected`

A function in place of a name is the user's own reader: `align.data.formats.own_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.data.formats.hh import is_transcript, read_hh
from align.data.formats.reading import Reading, Texts
from align.data.formats.sharegpt import read_sharegpt
from align.data.formats.trl import read_trl
from align.errors import DataError

# Raises `RowProblem` where the row does not hold the three texts.
Reader = Callable[[Mapping[str, Any], Reading], Texts]

READERS: Mapping[str, Reader] = {"trl": read_trl, "hh": read_hh, "sharegpt": read_sharegpt}
AUTO = "auto"

ACCEPTED = (
    "accepted are chosen + rejected (with prompt, or with a prompt that both begin with), "
    "conversations (or messages) + chosen + rejected, and chosen + rejected as transcripts of "
    "'\\n\\nHuman:' and '\\n\\nAssistant:' turns"
)


def reader_of(name: str, rows: Sequence[Mapping[str, Any]], source: str) -> Reader:
    """The reader called `name`; "auto" is decided by the first rows.

    Args:
        name: of `READERS`, or "auto".
        rows: the first rows of the source that could be read.
        source: what errors call the rows as a whole.

    Raises:
        DataError: there is no reader of this name, or no column that a reader needs.
    """
    if name not in (AUTO, *READERS):
        raise DataError(f"data.format is {name!r}; known are {', '.join((AUTO, *READERS))}.")
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    missing = [column for column in ("chosen", "rejected") if column not in columns]
    if rows and missing:
        raise DataError(
            f"{source} has no column {' and no column '.join(missing)}; found are "
            f"{', '.join(columns) or 'none'}; {ACCEPTED}. Rename the columns, or point data.pairs "
            "to another file."
        )
    return guessed(rows) if name == AUTO else READERS[name]


def has_prompts(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `rows` have prompts in a column of their own."""
    return _is_usual(rows, "prompt")


def guessed(rows: Sequence[Mapping[str, Any]]) -> Reader:
    """The reader that the columns of the first `rows` call for."""
    explicit = has_prompts(rows)
    if any(_is_usual(rows, name) for name in ("conversations", "conversation")):
        return read_sharegpt
    if _is_usual(rows, "messages") and not explicit and not _are_conversations(rows):
        return read_sharegpt
    if not explicit:
        sides = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
        if 2 * sum(is_transcript(side) for side in sides) > len(sides):
            return read_hh
    return read_trl


def _is_usual(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether at least half of the first answered rows fill `column`: a stray one cannot decide."""
    answered = [row for row in rows if row.get("chosen") is not None]
    return 0 < len(answered) <= 2 * sum(row.get(column) is not None for row in answered)


def _are_conversations(rows: Sequence[Mapping[str, Any]]) -> bool:
    sides = [row["chosen"] for row in rows if row.get("chosen") is not None]
    return len(sides) < 2 * sum(isinstance(side, list) and len(side) > 1 for side in sides)
