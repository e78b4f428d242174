# pyright: basic
"""Data sets of groups: token ids of prompts with their completions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from align.errors import DataError
from align.tokens.vision.columns import IMAGE_COLUMNS
from align.trainers.group_kind import FIELDS, GROUPS, LABEL, PER_TOKEN
from align.trainers.live import LiveRoles
from align.trainers.rows import RowPreparation

logger = logging.getLogger(__name__)

# The columns of a row that is one completion -> those of a row that is a group.
SINGULAR = {"completion_ids": "completions_ids", **FIELDS}
LISTS = ("completions_ids", *FIELDS.values())


class GroupRows(RowPreparation, LiveRoles):
    """The part of a trainer whose rows are groups."""

    kind = GROUPS

    @property
    def gathers_prompts(self) -> bool:
        """Whether rows of one completion each become one row per prompt."""
        return True

    def _is_tokenised(self, columns: Collection[str]) -> bool:
        return "completions_ids" in columns and not {"completion", "completions"} & set(columns)

    def _tokenised_table(
        self, dataset: Dataset, processing_class: Any, args: Any, name: str
    ) -> Dataset:
        columns = set(dataset.column_names)
        if {"prompt_ids", "chosen_ids", "rejected_ids"} <= columns and "chosen" not in columns:
            dataset = unpaired(dataset)
            columns = set(dataset.column_names)
        if {"prompt_ids", "completion_ids"} <= columns and "completion" not in columns:
            return grouped(dataset, together=self.gathers_prompts)
        raise DataError(
            f"The {name} data has the columns {', '.join(sorted(columns))}. Groups are rows of "
            "`prompt_ids` and `completions_ids`."
        )

    def _refuse_without_signal(self, dataset: Dataset, name: str) -> None:
        refuse_broken_groups(dataset, name)

    def compute_ref_log_probs(
        self, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Summed log-probs of a batch's completions under the reference, as TRL gives them.

        Args:
            model: a frozen model; the policy itself stands for the reference as it was before
                training where an adapter is trained, as in TRL.
            inputs: a batch of this trainer's own collator.

        Returns:
            [N] nats, and of the mismatched completions [N], None where there are none.

        Raises:
            RecipeError: the batch is another collator's.
        """
        found: list[Tensor | None] = []
        for name in ("parts", "measured"):
            if name == "measured" and name not in inputs:
                found.append(None)
                continue
            rows: list[Tensor] = []
            places: list[Tensor] = []
            for part, logps in self._of_reference(model, inputs, name):
                rows += logps.total().split(part["sizes"].tolist())
                places.append(part["place"])
            found.append(torch.cat([rows[place] for place in torch.cat(places).argsort().tolist()]))
        completions, mismatched = found
        assert completions is not None
        return completions, mismatched


def unpaired(dataset: Dataset) -> Dataset:
    """Pairs as rows of one completion each, in TRL's order: a thousand chosen, their rejected ones.

    Columns of both sides stay with their side; others are said of either.
    """
    sided = {"ids": "completion_ids", "score": "score", "token_weight": "token_weight"}
    known = {f"{side}_{name}" for side in ("chosen", "rejected") for name in sided}
    shared = [name for name in dataset.column_names if name not in known]
    made: dict[str, list[Any]] = {name: [] for name in (*shared, "label")}
    made |= {sided[name]: [] for name in sided if f"chosen_{name}" in dataset.column_names}
    batches: Any = dataset.iter(batch_size=UNPAIRED_AT_ONCE)
    for batch in batches:
        for side in ("chosen", "rejected"):
            size = len(batch["prompt_ids"])
            made["label"] += [side == "chosen"] * size
            for name in shared:
                made[name] += batch[name]
            for name, column in sided.items():
                if column in made:
                    made[column] += batch[f"{side}_{name}"]
    return Dataset.from_dict(made)


# `unpair_preference_dataset` maps batches of the size that `Dataset.map` has by default.
UNPAIRED_AT_ONCE = 1000


def grouped(dataset: Dataset, *, together: bool) -> Dataset:
    """Rows of one completion each as groups, in the order in which prompts come first.

    Args:
        dataset: `prompt_ids`, `completion_ids` and any of `score`, `label`, ...
        together: rows of one `group_id`, or else of one prompt, are one group; else each is its
            own.
    """
    columns = dataset.column_names
    lists = {name: column for name, column in SINGULAR.items() if name in columns}
    groups: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(dataset):
        assert isinstance(row, dict)
        prompt = tuple(row["prompt_ids"])
        key: Any = number
        if together:
            key = (row.get("group_id"), prompt)
        group = groups.setdefault(
            key,
            {name: row[name] for name in columns if name not in lists}
            | {column: [] for column in lists.values()},
        )
        for name, column in lists.items():
            group[column].append(row[name])
    return Dataset.from_list(list(groups.values()))


def refuse_broken_groups(dataset: Dataset, name: str) -> None:
    """Looks at every row's token ids, and at what stands beside them.

    Raises:
        DataError: a prompt or completion is empty, or a list is not as long as what it is about.
    """
    if shown := [column for column in IMAGE_COLUMNS if column in dataset.column_names]:
        raise DataError(
            f"The {name} data has the column {shown[0]}: groups of completions are of text. Leave "
            "the pictures out, or train on pairs."
        )
    present = [column for column in LISTS if column in dataset.column_names]
    columns: list[Any] = [dataset[column] for column in ("prompt_ids", *present)]
    for i, (prompt, completions, *others) in enumerate(zip(*columns, strict=True)):
        if not prompt or not completions or not all(completions):
            raise DataError(f"Row {i} of the {name} data has no prompt or no completion tokens.")
        for column, values in zip(present[1:], others, strict=True):
            if len(values) != len(completions) or None in values:
                raise DataError(
                    f"Row {i} of the {name} data has {len(completions)} completions and "
                    f"{len(values)} {column}; give one for each, none of them null."
                )
            if column in PER_TOKEN.values() and [*map(len, values)] != [*map(len, completions)]:
                raise DataError(
                    f"Row {i} of the {name} data: {column} must have a number for each token of "
                    "each completion."
                )
            if column == LABEL and not all(isinstance(label, bool) for label in values):
                raise DataError(f"Row {i} of the {name} data: labels are True or False.")
