"""Rows on disk or on the Hub to records: a fitted image and its caption, and maybe a worse image.

    plain      image, caption, rejected_image (where it is asked for)
    pickapic   jpg_0, jpg_1, label_0, caption: label_0 says whether the first image was preferred

An image is a path (relative to its file), bytes, or what `datasets` makes of one. A row that cannot
be used is counted with its reason and left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import load_dataset
from PIL import Image, UnidentifiedImageError
from pyarrow import parquet

from align.data.problems import DroppedRow, Reason
from align.data.row_report import RowReport
from align.diffusion.images import FittedImage
from align.diffusion.latents import Record
from align.diffusion.settings import DiffusionData
from align.errors import DataError

PICKAPIC = ("jpg_0", "jpg_1", "label_0", "caption")


class _Unusable(Exception):
    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.field, self.detail = field, detail


class RecordReader:
    """Reads the records of a recipe, one pass.

    Args:
        data: what to read.
        with_rejected: whether every record must have a rejected image.

    Attributes:
        report: the count of every row that was read so far.
    """

    def __init__(self, data: DiffusionData, *, with_rejected: bool) -> None:
        self.data = data
        self.with_rejected = with_rejected
        self.report = RowReport()

    def __iter__(self) -> Iterator[Record]:
        for number, (row, source) in enumerate(self._rows(), start=1):
            if self.data.limit is not None and self.report.kept >= self.data.limit:
                return
            try:
                record = self._record(row, source)
            except _Unusable as found:
                self.report.drop(
                    DroppedRow(
                        source=str(source),
                        row=number,
                        field=found.field,
                        reason=found.reason,
                        detail=found.detail,
                    )
                )
                continue
            self.report.keep()
            yield record

    def _record(self, row: Mapping[str, Any], source: Path | str) -> Record:
        names = ("image", "rejected_image")
        if self._is_pickapic(row):
            label = row.get("label_0")
            if label == 0.5:
                raise _Unusable("tie", "label_0", "neither image was preferred")
            if label not in (0, 1):
                raise _Unusable("bad_score", "label_0", "neither 0, 0.5 nor 1")
            names = ("jpg_0", "jpg_1") if label == 1 else ("jpg_1", "jpg_0")
        caption = row.get("caption")
        if caption is not None and not isinstance(caption, str):
            raise _Unusable("wrong_type", "caption", f"a {type(caption).__name__}")
        if caption is None or not caption.strip():
            raise _Unusable("missing_field", "caption", "no caption")
        base = source.parent if isinstance(source, Path) else None
        image = self._image(row, names[0], base)
        rejected = self._image(row, names[1], base) if self.with_rejected else None
        return Record(image, caption, rejected)

    def _is_pickapic(self, row: Mapping[str, Any]) -> bool:
        if self.data.format == "auto":
            return all(name in row for name in PICKAPIC)
        return self.data.format == "pickapic"

    def _image(self, row: Mapping[str, Any], name: str, base: Path | None) -> FittedImage:
        value = row.get(name)
        if value is None:
            raise _Unusable("missing_field", name, "no image")
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        try:
            if isinstance(value, bytes):
                value = Image.open(io.BytesIO(value))
            elif isinstance(value, str):
                path = Path(value)
                value = Image.open(path if path.is_absolute() or base is None else base / path)
            if not isinstance(value, Image.Image):
                raise _Unusable("wrong_type", name, f"a {type(value).__name__}")
            return FittedImage(value, self.data.resolution)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise _Unusable("unreadable", name, type(error).__name__) from error

    def _rows(self) -> Iterator[tuple[Mapping[str, Any], Path | str]]:
        """Rows with the file or data set they come from."""
        where = Path(self.data.records).expanduser()
        if where.is_dir():
            files = sorted(p for p in where.rglob("*") if p.suffix in (".jsonl", ".parquet"))
            if not files:
                raise DataError(
                    f"data.records: {where} holds no .jsonl and no .parquet file. Write one row "
                    '{"image": "<path>", "caption": "..."} per line into metadata.jsonl.'
                )
            for file in files:
                yield from self._of_file(file)
        elif where.is_file():
            yield from self._of_file(where)
        else:
            yield from self._of_hub()

    def _of_file(self, file: Path) -> Iterator[tuple[Mapping[str, Any], Path]]:
        if file.suffix == ".parquet":
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield row, file
            return
        if file.suffix != ".jsonl":
            raise DataError(f"data.records: {file} is neither a .jsonl nor a .parquet file.")
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{file}:{number}: this line is no JSON ({error}).") from error
                yield row if isinstance(row, dict) else {}, file

    def _of_hub(self) -> Iterator[tuple[Mapping[str, Any], str]]:
        data = self.data
        try:
            rows = load_dataset(
                data.records, split=data.split, revision=data.revision, streaming=True
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.records: {data.records} is no file here and cannot be read from the Hub "
                f"({error})."
            ) from error
        for row in rows:
            yield row, data.records
