"""Groups of completions of a file, a folder or a Hub data set."""

from __future__ import annotations

from collections.abc import Mapping

from align.data.column_map import AS_THEY_ARE, with_columns
from align.data.formats.groups import groups_from_rows
from align.data.groups import CompletionGroup
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows


def read_groups(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] = AS_THEY_ARE,
    policy: RowPolicy,
) -> tuple[list[CompletionGroup], RowReport]:
    """All groups of a source that can be used, in order, and the report on the others.

    Args:
        path_or_id: as `align.data.pair_files.read_pairs` takes it.
        split: likewise.
        revision: likewise.
        columns: likewise.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: no such source, more rows dropped than `policy.max_dropped`, or none left.
        MachineError: the Hub cannot be reached.
    """
    rows = with_columns(open_rows(path_or_id, split, revision), columns)
    return groups_from_rows(rows, policy=policy)
