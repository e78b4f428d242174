# pyright: basic
"""Rows as the trainer takes them: tokenised, numbered, refused where they cannot teach anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from align.data.formats.pairs import pairs_from_rows
from align.data.row_policy import RowPolicy
from align.errors import DataError, RecipeError
from align.reference import SCORED_COLUMNS
from align.tokens.dataset import to_dataset
from align.tokens.encoding import encode_pairs
from align.tokens.vision.columns import IMAGE_COLUMNS, sides_in
from align.trainers.base import TrainerBase
from align.trainers.collator import PAIR_KIND, ROLE_COLUMNS, SCALARS, TOKEN_WEIGHTS
from align.trainers.config import PreferenceConfig

logger = logging.getLogger(__name__)

# What an objective may ask for beyond log-probs -> the columns that carry it.
COLUMNS_OF = {
    "score": ("chosen_score", "rejected_score"),
    "preference": ("preference",),
    "token_weight": TOKEN_WEIGHTS,
    PAIR_KIND: (PAIR_KIND,),
}
# The raw columns of rows with pictures, under which TRL would take the rows out of our hands.
RAW_IMAGES = ("images", "image")
HIDDEN = "row_"


class RowPreparation(TrainerBase):
    """The part of the trainer that takes data sets in and names their rows in messages."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset:
        if isinstance(dataset, IterableDataset):
            raise RecipeError(
                f"The {dataset_name} data is a stream. Roles are scored once over all rows, so "
                "they must be known: use a map-style data set."
            )
        dataset = dataset.rename_columns(
            {HIDDEN + name: name for name in RAW_IMAGES if HIDDEN + name in dataset.column_names}
        )
        columns = dataset.column_names
        # A pipeline's rows bring ids beside their texts; those are checked against each other.
        if "prompt_ids" not in columns or "chosen" in columns:
            dataset = tokenised(dataset, processing_class, args, dataset_name)
        dataset = dataset.remove_columns(
            [name for name in ("row_index", *ROLE_COLUMNS) if name in dataset.column_names]
        )
        if len(dataset) == 0:
            raise DataError(f"The {dataset_name} data has no rows.")
        first = self._row_count
        self._row_count += len(dataset)
        self._row_tables.append(dataset)
        index = list(range(first, self._row_count))
        refuse_rows_without_signal(dataset, dataset_name)
        return concatenate_datasets([dataset, Dataset.from_dict({"row_index": index})], axis=1)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [
                "row_index",
                "group_id",
                *SCORED_COLUMNS,
                *SCALARS,
                *TOKEN_WEIGHTS,
                *ROLE_COLUMNS,
                PAIR_KIND,
                *IMAGE_COLUMNS,
            ]

    def _check_columns(self) -> None:
        """Refuses a missing column; says once which columns have no influence."""
        columns = set(self.train_dataset.column_names)
        for need in sorted(self.objective.needs & COLUMNS_OF.keys()):
            if missing := [name for name in COLUMNS_OF[need] if name not in columns]:
                raise DataError(
                    f"Objective {self.objective.name} needs the column(s) {', '.join(missing)}, "
                    "which the training data does not have. It has: "
                    f"{', '.join(sorted(columns))}."
                )
        read = self.objective.needs | self.objective.accepts
        self._optional_columns = {
            name
            for field, names in COLUMNS_OF.items()
            for name in names
            if field in read and name in columns
        }
        # Which kind a pair is, is provenance to every objective but one.
        known = {name for names in COLUMNS_OF.values() for name in names} - {PAIR_KIND}
        if unread := known & columns - self._optional_columns:
            logger.warning(
                "Objective %s does not read the column(s) %s; they have no influence on this run.",
                self.objective.name,
                ", ".join(sorted(unread)),
            )

    def _row_name(self, index: int) -> str:
        """Where the row with this `row_index` came from, as people look for it."""
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


def tokenised(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, name: str
) -> Dataset:
    """Rows in TRL's preference format as token ids, with the checks that a recipe's rows get.

    Raises:
        DataError: too many rows cannot be used.
    """
    on_too_long: Any = args.on_too_long
    policy = RowPolicy(max_length=args.max_length, on_too_long=on_too_long)
    numbered: Any = enumerate(dataset, start=1)
    rows = ((f"{name} data", i, row) for i, row in numbered)
    pairs, report = pairs_from_rows(rows, source=f"The {name} data", format="trl", policy=policy)
    tokenized = encode_pairs(pairs, tokenizer, policy, report)
    logger.info("%s data: %s", name, report.summary())
    return to_dataset(tokenized)


def refuse_rows_without_signal(dataset: Dataset, name: str) -> None:
    """Looks at every row's token ids.

    Raises:
        DataError: a prompt or completion is empty, or the two completions are the same.
    """
    columns = (dataset[column] for column in SCORED_COLUMNS)
    differ: Any = [False] * len(dataset)
    if "degraded" in dataset.column_names:
        shown = (sides_in(row) for row in dataset.select_columns(list(IMAGE_COLUMNS)))  # type: ignore[arg-type]
        differ = [chosen != rejected for chosen, rejected in shown]
    rows = zip(*columns, strict=True)
    for i, (prompt, chosen, rejected) in enumerate(rows):
        if not prompt or not chosen or not rejected:
            raise DataError(f"Row {i} of the {name} data has no prompt or no completion tokens.")
        if chosen == rejected and not differ[i]:
            raise DataError(
                f"Row {i} of the {name} data has the same tokens as chosen and as rejected. It "
                "has no gradient, but Adam would turn its rounding errors into steps; leave it out."
            )
