"""Rows of Parquet files and of saved or downloaded data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.data.packed_files import bytes_of
from align.data.problems import RawRow, RowProblem


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Every row of a Parquet file, also gzipped as a whole."""
    if path.name.lower().endswith(".gz"):
        with bytes_of(path) as packed:
            file = pq.ParquetFile(pa.BufferReader(packed.read()))
    else:
        file = pq.ParquetFile(path)
    with file:
        yield from _read_batches(str(path), file.iter_batches(batch_size=1024))


def read_dataset(source: str, dataset: Any) -> Iterator[RawRow]:
    """Every row of a `datasets.Dataset`."""
    return _read_batches(source, dataset.with_format("arrow").iter(batch_size=1024))


def _read_batches(source: str, batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_arrow_row(batch, i) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield source, number, row


def _arrow_row(batch: pa.RecordBatch | pa.Table, i: int) -> Mapping[str, Any] | RowProblem:
    row: dict[str, Any] = {}
    for name in batch.column_names:
        try:
            row[name] = batch.column(name)[i].as_py()
        except UnicodeDecodeError as error:
            return RowProblem("unreadable", name, f"byte {error.start + 1} is no UTF-8")
    return row
