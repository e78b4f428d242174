"""Preference pairs of a file, a folder or a Hub data set."""

from __future__ import annotations

from collections.abc import Mapping

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.formats.own_reader import RowReader
from align.data.formats.pairs import pairs_from_rows
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows


def read_pairs(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] = AS_THEY_ARE,
    format: str | RowReader = "auto",  # noqa: A002 - the recipe's own word
    policy: RowPolicy,
) -> tuple[list[PreferencePair], RowReport]:
    """All pairs of a source that can be used, in order, and the report on the others.

    Args:
        path_or_id: a JSON, JSON Lines, Parquet or CSV file (also gzipped), a folder of such files
            or of a saved dataset, or a Hub id, optionally id@revision.
        split: of a Hub dataset, of a saved dataset with splits, or of a folder whose file names
            say train, test and so on. A single file is its own split.
        revision: branch, tag or commit of a Hub dataset.
        columns: as `align.data.column_map.with_columns` takes them.
        format: how to read the columns: "auto" decides by the first rows, "trl", "hh" and
            "sharegpt" are formats by name, and a function puts one row into TRL's columns, or
            gives None to leave it out.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: no such source, columns of no known format, more rows dropped than
            `policy.max_dropped`, or none left.
        MachineError: the Hub cannot be reached.
    """
    rows = with_columns(open_rows(path_or_id, split, revision), columns)
    return pairs_from_rows(rows, source=path_or_id, format=format, policy=policy)
