"""The baseline's outputs, whose instructions are what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from align_eval.outputs import read_outputs
from align_eval.row_files import Row, by_key, read_rows


@dataclass(frozen=True)
class Reference:
    """The baseline's outputs.

    Attributes:
        generator: its name.
        rows: instruction -> row, in the order of the file.
    """

    generator: str
    rows: Mapping[str, Row]

    def first(self, limit: int | None) -> Reference:
        """Of the first `limit` instructions; None takes all."""
        return Reference(self.generator, dict(islice(self.rows.items(), limit)))


def read_reference(path: Path) -> Reference:
    """A model_outputs.json with one generator.

    Raises:
        DataError: a row lacks a field, two have one instruction, or there are several generators.
    """
    rows = by_key(read_rows(path, needs=("instruction", "output")), "instruction", str(path))
    named = read_outputs(path, list(rows), generator=None)
    return Reference(named.generator, rows)
