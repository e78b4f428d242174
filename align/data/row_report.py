"""The count of rows: how many were read, kept and dropped, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from align.data.problems import REASONS, DroppedRow
from align.data.row_policy import SWITCHES
from align.errors import DataError


@dataclass
class RowReport:
    """The count of rows: `read == kept + sum(dropped.values())` at every moment.

    Attributes:
        read: rows seen.
        kept: rows that can still be trained on.
        dropped: rows kept out, by reason code.
        rows: every dropped row.
        notes: what was done to kept rows, by name (`boundary_merge`, `cut_prompt`, ...).
        ignored_columns: columns that no reader uses, each named once.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    rows: list[DroppedRow] = field(default_factory=list[DroppedRow])
    notes: Counter[str] = field(default_factory=Counter[str])
    ignored_columns: list[str] = field(default_factory=list[str])

    def keep(self) -> None:
        """Count one more row, kept."""
        self.read += 1
        self.kept += 1

    def drop(self, row: DroppedRow) -> None:
        """Count one more row, dropped."""
        self.read += 1
        self.dropped[row.reason] += 1
        self.rows.append(row)

    def drop_kept(self, row: DroppedRow) -> None:
        """Move a row that was counted as kept to the dropped ones."""
        if self.kept < 1:
            raise ValueError("drop_kept: this report has no kept row left to move")
        self.read -= 1
        self.kept -= 1
        self.drop(row)

    def ignore_columns(self, names: Sequence[str]) -> None:
        """Remember columns that are not used."""
        self.ignored_columns.extend(name for name in names if name not in self.ignored_columns)

    def merge(self, other: RowReport) -> None:
        """Add the rows of another source."""
        self.read += other.read
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.rows.extend(other.rows)
        self.notes.update(other.notes)
        self.ignore_columns(other.ignored_columns)

    def check(self, max_dropped: float) -> None:
        """Raise when too many rows were dropped, or none is left.

        Raises:
            DataError: naming the counts by reason and the first places.
        """
        lost = sum(self.dropped.values())
        if self.kept > 0 and lost <= max_dropped * self.read:
            return
        if self.read == 0:
            raise DataError(
                "No row was read: the source is empty. Check data.pairs and data.split, then run "
                "the same command again."
            )
        first = "; ".join(str(row) for row in self.rows[:3])
        what = (
            f"None of the {self.read} rows can be used"
            if self.kept == 0
            else f"{lost} of {self.read} rows ({lost / self.read:.1%}) cannot be used, over "
            f"the limit of {max_dropped:.1%}"
        )
        switches = [
            SWITCHES[reason] for reason in REASONS if self.dropped[reason] and reason in SWITCHES
        ]
        advice = "Mend these rows"
        if switches:
            named = ", ".join(f"data.{name}" for name in dict.fromkeys(switches))
            advice += f", choose another policy for them ({named})"
        if self.kept > 0:
            # Rounded up, so that the advised limit lets exactly these rows pass.
            enough = math.ceil(1000 * lost / self.read) / 1000
            advice += f", or set data.max_dropped to {enough:g} or more if this loss is acceptable"
        raise DataError(f"{what}: {_counts(self.dropped)}. First: {first}. {advice}.")

    def summary(self) -> str:
        """One paragraph for people."""
        parts = [f"{self.read} rows read, {self.kept} kept"]
        if self.dropped:
            parts.append(f"{sum(self.dropped.values())} dropped ({_counts(self.dropped)})")
        if self.notes:
            parts.append(f"of the kept: {_counts(self.notes)}")
        if self.ignored_columns:
            parts.append(f"unused columns: {', '.join(self.ignored_columns)}")
        return "; ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps(..., allow_nan=False)` takes."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "rows": [row.model_dump() for row in self.rows],
            "notes": dict(sorted(self.notes.items())),
            "ignored_columns": list(self.ignored_columns),
        }


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())
