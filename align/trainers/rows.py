# pyright: basic
"""Rows as the trainer takes them: tokenised, numbered, refused where they cannot teach anything."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets

from align.data.row_report import RowReport
from align.errors import DataError
from align.tokens.vision.columns import IMAGE_COLUMNS
from align.trainers.base import TrainerBase
from align.trainers.config import PreferenceConfig

logger = logging.getLogger(__name__)

# The raw columns of rows with pictures, under which TRL would take the rows out of our hands.
RAW_IMAGES = ("images", "image")
HIDDEN = "row_"
# Columns of raw rows that do not stay beside the ids: pictures are read again each time a row is.
UNSHOWN = (*RAW_IMAGES, "rejected_images", "pair_kind", "row_index", *IMAGE_COLUMNS)
# What comes of `max_length`, which is the user's own choice.
OF_LENGTH = ("too_long", "equal_after_cut")
# Streams number their rows from multiples of this on, tables below it.
STREAM_ROWS = 2**40


class RowPreparation(TrainerBase):
    """The part of the trainer that takes data sets in and names their rows in messages."""

    def _is_tokenised(self, columns: Collection[str]) -> bool:
        """Whether rows of these columns bring ids and no texts to check them against."""
        raise NotImplementedError

    def _tokenised_table(
        self, dataset: Dataset, processing_class: Any, args: Any, name: str
    ) -> Dataset:
        """A table of texts as token ids.

        Raises:
            DataError: too many rows cannot be used.
        """
        raise NotImplementedError

    def _tokenised_row(
        self, row: Mapping[str, Any], number: int, processing_class: Any, args: Any, name: str
    ) -> list[dict[str, Any]]:
        """A stream's row of texts as one row of ids, or none where it cannot be used."""
        raise NotImplementedError

    def _refuse_without_signal(self, dataset: Dataset, name: str) -> None:
        """Looks at every row's token ids.

        Raises:
            DataError: a row has nothing to learn from.
        """
        raise NotImplementedError

    def _completed(self, dataset: Dataset, args: Any) -> Dataset:
        """Tokenised rows with the columns that come of their order."""
        del args
        return dataset

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        if isinstance(dataset, IterableDataset):
            return self._prepare_stream(dataset, processing_class, args, dataset_name)
        dataset = dataset.rename_columns(
            {HIDDEN + name: name for name in RAW_IMAGES if HIDDEN + name in dataset.column_names}
        )
        columns = dataset.column_names
        shown = [c for c in RAW_IMAGES if c in columns and _has_values(dataset, c)]
        if shown and not hasattr(processing_class, "image_processor"):
            raise DataError(
                f"The {dataset_name} data is vision-related (it has a column of images), and the "
                "model with its tokenizer is no vision-language model. Use one with a processor of "
                "pictures, or remove the column."
            )
        if not self._is_tokenised(columns):
            dataset = self._tokenised_table(dataset, processing_class, args, dataset_name)
        ours = ("row_index", *self.scored_kind.role_columns)
        dataset = dataset.remove_columns([name for name in ours if name in dataset.column_names])
        if len(dataset) == 0:
            raise DataError(f"The {dataset_name} data has no rows.")
        self._refuse_without_signal(dataset, dataset_name)
        dataset = self._completed(dataset, args)
        first = self._row_count
        self._row_count += len(dataset)
        self._row_tables.append(dataset)
        index = list(range(first, self._row_count))
        return concatenate_datasets([dataset, Dataset.from_dict({"row_index": index})], axis=1)

    def _prepare_stream(
        self, stream: IterableDataset, processing_class: Any, args: Any, name: str
    ) -> IterableDataset:
        """Rows tokenised as they come; one that cannot be used is left out and named."""
        # Dispatching would join batches of different layouts.
        args.accelerator_config.dispatch_batches = False
        first_row: Any = next(iter(stream), None)
        if first_row is None:
            raise DataError(f"The {name} data has no rows.")
        if "row_index" in first_row:
            return stream
        self._streams += 1
        first = self._streams * STREAM_ROWS
        given = self._is_tokenised(first_row.keys())
        known = set(self.kind.read_columns) - set(self.kind.role_columns)

        def encoded(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
            row = {column: values[0] for column, values in batch.items()}
            rows: list[Any] = (
                [row]
                if given
                else self._tokenised_row(row, indices[0], processing_class, args, name)
            )
            columns = [c for c in sorted(known) if all(one.get(c) is not None for one in rows)]
            found: dict[str, list[Any]] = {c: [one[c] for one in rows] for c in columns}
            return found | {"row_index": [first + indices[0]] * len(rows)}

        return stream.map(
            encoded, with_indices=True, batched=True, batch_size=1, remove_columns=list(first_row)
        )

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [
                "row_index",
                "group_id",
                *dict.fromkeys((*self.kind.read_columns, *self.scored_kind.read_columns)),
                *IMAGE_COLUMNS,
            ]

    def _check_columns(self) -> None:
        """Refuses a missing column; says once which columns have no influence."""
        columns = set(next(iter(self.train_dataset)))
        columns_of = self.kind.columns_of
        for need in sorted(self.objective.needs & columns_of.keys()):
            if missing := [name for name in columns_of[need] if name not in columns]:
                raise DataError(
                    f"Objective {self.objective.name} needs the column(s) {', '.join(missing)}, "
                    "which the training data does not have. It has: "
                    f"{', '.join(sorted(columns))}."
                )
        read = self.objective.needs | self.objective.accepts
        self._optional_columns = {
            name
            for field, names in columns_of.items()
            for name in names
            if field in read and name in columns
        }
        known = {name for names in columns_of.values() for name in names} - self.kind.provenance
        if unread := known & columns - self._optional_columns:
            logger.warning(
                "Objective %s does not read the column(s) %s; they have no influence on this run.",
                self.objective.name,
                ", ".join(sorted(unread)),
            )

    def _row_name(self, index: int) -> str:
        """Where the row with this `row_index` came from, as people look for it."""
        if index >= STREAM_ROWS:
            return f"row {index % STREAM_ROWS} of a stream"
        first = 0
        for table in self._row_tables:
            if index < first + len(table):
                row = table[index - first]
                if row.get("source"):
                    return f"{row['source']}:{row['row']}"
                return f"row {index - first}"
            first += len(table)
        return f"row {index}"


def hidden_images(dataset: Any) -> Any:
    """The data set (or each of a mapping) with its raw picture columns under names of our own."""
    if isinstance(dataset, Mapping):
        return {name: hidden_images(one) for name, one in dataset.items()}
    if not isinstance(dataset, Dataset):
        return dataset
    own = [name for name in RAW_IMAGES if name in dataset.column_names]
    return dataset.rename_columns({name: HIDDEN + name for name in own}) if own else dataset


def _has_values(dataset: Dataset, column: str) -> bool:
    """Whether not every row has None there, without reading a picture."""
    return dataset.data.column(column).null_count < dataset.data.num_rows


def tell(report: RowReport, args: PreferenceConfig, name: str, split: int | None) -> None:
    """Says what became of the rows; `split` is the first that spells control tokens.

    Raises:
        DataError: more than `max_dropped` of them are left out, over-long ones not counted.
    """
    lost = sum(count for reason, count in report.dropped.items() if reason not in OF_LENGTH)
    if lost > args.max_dropped * report.read:
        first = "; ".join(str(row) for row in report.rows if row.reason not in OF_LENGTH)[:600]
        raise DataError(
            f"{lost} of {report.read} rows ({lost / report.read:.1%}) of the {name} data cannot be "
            f"used, over max_dropped = {args.max_dropped:g}: {report.summary()} First: {first}. "
            "Mend these rows, or set max_dropped in the config if this loss is acceptable."
        )
    if report.dropped:
        logger.warning("%s data: %s First: %s.", name, report.summary(), report.rows[0])
    else:
        logger.info("%s data: %s", name, report.summary())
    if split is not None:
        logger.warning(
            "Row %d of the %s data spells control tokens of the tokenizer; they are read as "
            "ordinary text. Where a text was rendered with a chat template beforehand, set "
            'on_control_tokens="keep".',
            split,
            name,
        )
