"""Rows of a preference format -> pairs, every bad row named, counted, kept out."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from align.data.formats.own_reader import RowReader, name_of, rows_through
from align.data.formats.readers import has_prompts, reader_of
from align.data.formats.reading import Reading
from align.data.formats.record import pair_of_row
from align.data.messages import Text
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import DroppedRow, RawRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport

# How many rows the format is decided by.
SAMPLED_ROWS = 64


def pairs_from_rows(
    rows_in_place: Iterable[RawRow],
    *,
    source: str,
    format: str | RowReader = "auto",  # noqa: A002 - the recipe's own word
    policy: RowPolicy,
) -> tuple[list[PreferencePair], RowReport]:
    """All pairs that can be used, in order, and the report on the others.

    Args:
        rows_in_place: where each row stands (file, number), and the row or what keeps it from
            being one.
        source: what errors call the rows as a whole.
        format: how to read the columns: a name, of which "auto" decides by the first rows, or a
            function that puts one row into TRL's columns, or gives None to leave it out.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: columns of no known format, more rows dropped than `policy.max_dropped`, or none
            left.
    """
    if callable(format):
        rows_in_place = rows_through(format, rows_in_place)
        source, format = f"{source}, as {name_of(format)} reads it,", "trl"  # noqa: A001
    raws = iter(rows_in_place)
    sample = list(itertools.islice(raws, SAMPLED_ROWS))
    rows = [row for _, _, row in sample if isinstance(row, Mapping)]
    report = RowReport()
    reading = Reading(policy, report, explicit_prompt=has_prompts(rows))
    read = reader_of(format, rows, source)
    pairs: list[PreferencePair] = []
    seen: dict[bytes, tuple[str, int]] = {}
    for place, number, raw in itertools.chain(sample, raws):
        reading.notes.clear()
        reading.placeholders.clear()
        try:
            if isinstance(raw, RowProblem):
                raise raw
            pair = pair_of_row(raw, read(raw, reading), reading, place, number)
            check_pair(pair, policy.on_empty)
            if policy.on_swapped_duplicate != "keep":
                _check_swapped(pair, seen)
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, place, number)
            policy.obey(dropped)
            report.drop(dropped)
            continue
        report.notes.update(reading.notes)
        report.keep()
        pairs.append(pair)
    report.check(policy.max_dropped)
    return pairs, report


def _check_swapped(pair: PreferencePair, seen: dict[bytes, tuple[str, int]]) -> None:
    def key(*texts: Text) -> bytes:
        plain: list[Any] = [
            t if isinstance(t, str) else [(m.role, m.content) for m in t] for t in texts
        ]
        if pair.images is not None:
            plain += [list(pair.images), pair.image_places]
        return hashlib.sha256(json.dumps(plain).encode("ascii")).digest()

    if pair.rejected_images is not None:
        # The sides differ in what is seen, which the texts do not say.
        return
    earlier = seen.get(key(pair.prompt, pair.rejected, pair.chosen))
    if earlier is not None:
        raise RowProblem("swapped_duplicate", "rejected", f"{earlier[0]}, row {earlier[1]}")
    seen.setdefault(key(pair.prompt, pair.chosen, pair.rejected), (pair.source, pair.row))
