# pyright: basic
"""Data sets of groups: TRL's unpaired format, prompts with their completions, or token ids."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.data_utils import extract_prompt

from align.data.formats.groups import groups_from_rows
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import DataError, RecipeError
from align.tokens.groups import (
    TokenizedGroup,
    encode_groups,
    encode_rendered_groups,
    group_table,
)
from align.tokens.rendered_rows import needs_template
from align.tokens.vision.columns import IMAGE_COLUMNS
from align.trainers.config import PreferenceConfig
from align.trainers.group_kind import FIELDS, GROUPS, LABEL, PER_TOKEN
from align.trainers.live import LiveRoles
from align.trainers.rows import RowPreparation, tell

logger = logging.getLogger(__name__)

# The columns of a row that is one completion -> those of a row that is a group.
SINGULAR = {"completion_ids": "completions_ids", **FIELDS}
LISTS = ("completions_ids", *FIELDS.values())
# Columns of texts, of which rows of ids have none.
TEXTS = frozenset({"prompt", "completion", "completions", "chosen", "rejected"})
# The sides of a pair's columns -> those of a completion.
SIDED = {
    "": "completion",
    "_ids": "completion_ids",
    "_score": "score",
    "_token_weight": "token_weight",
    "_ends": "finished",
}
# `unpair_preference_dataset` maps batches of the size that `Dataset.map` has by default.
UNPAIRED_AT_ONCE = 1000


class GroupRows(RowPreparation, LiveRoles):
    """The part of a trainer whose rows are groups."""

    kind = GROUPS

    @property
    def gathers_prompts(self) -> bool:
        """Whether rows of one completion each become one row per prompt."""
        return True

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        if hasattr(processing_class, "image_processor"):
            raise RecipeError(
                f"{type(self).__name__} takes models of text, and this one has a processor of "
                "pictures: train it on pairs."
            )
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _prepare_stream(
        self, stream: IterableDataset, processing_class: Any, args: Any, name: str
    ) -> IterableDataset:
        first: Any = next(iter(stream), {})
        if {"chosen", "rejected"} <= first.keys() or {"chosen_ids", "rejected_ids"} <= first.keys():
            stream = stream.map(
                unpaired_rows,
                batched=True,
                batch_size=UNPAIRED_AT_ONCE,
                remove_columns=list(first),
            )
        return super()._prepare_stream(stream, processing_class, args, name)

    def _is_tokenised(self, columns: Collection[str]) -> bool:
        return "completions_ids" in columns and not TEXTS & set(columns)

    def _tokenised_table(
        self, dataset: Dataset, processing_class: Any, args: Any, name: str
    ) -> Dataset:
        columns = set(dataset.column_names)
        if {"chosen", "rejected"} <= columns or {"chosen_ids", "rejected_ids"} <= columns:
            dataset = unpaired(dataset)
            columns = set(dataset.column_names)
        single = not {"completions", "completions_ids"} & columns
        if {"prompt_ids", "completion_ids"} <= columns and not TEXTS & columns:
            table = as_groups(dataset)
        else:
            table = tokenised_groups(dataset, processing_class, args, name)
        return gathered(table) if single and self.gathers_prompts else table

    def _tokenised_row(
        self, row: Mapping[str, Any], number: int, processing_class: Any, args: Any, name: str
    ) -> list[dict[str, Any]]:
        if "completion_ids" in row and not TEXTS & row.keys():
            return as_groups(Dataset.from_list([dict(row)])).to_list()
        try:
            made, _ = encoded([(number + 1, row)], processing_class, args, name)
        except DataError as error:
            logger.warning("Row %d of the %s data is left out. %s", number, name, error)
            return []
        return group_table(made).to_list()

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
        completions = self._totals(model, inputs, "parts")
        return completions, self._totals(
            model, inputs, "measured"
        ) if "measured" in inputs else None

    def _totals(self, model: Any, inputs: Mapping[str, Any], name: str) -> Tensor:
        rows: list[Tensor] = []
        places: list[Tensor] = []
        for part, logps in self._of_reference(model, inputs, name):
            rows += logps.total().split(part["sizes"].tolist())
            places.append(part["place"])
        return torch.cat([rows[place] for place in torch.cat(places).argsort().tolist()])


def encoded(
    numbered: Iterable[tuple[int, Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    args: PreferenceConfig,
    name: str,
) -> tuple[list[TokenizedGroup], RowReport]:
    """Token ids of numbered rows, and the report on those that cannot be used.

    Raises:
        DataError: none can be used.
    """
    choices: dict[str, Any] = {
        "on_too_long": args.on_too_long,
        "on_control_tokens": args.on_control_tokens,
        # As in TRL: without a prompt, and without a token that opens a text, the first is context.
        "on_empty": "keep_prompt",
    }
    # How many may be missing is the trainer's to say: TRL leaves over-long rows out too.
    policy = RowPolicy(max_length=args.max_length, max_dropped=1.0, **choices)
    rows = list(numbered)
    source = f"{name} data"
    if any(needs_template(row, ("prompt", "completion")) for _, row in rows):
        return encode_rendered_groups(rows, tokenizer, policy, source)
    groups, report = groups_from_rows(((source, i, row) for i, row in rows), policy=policy)
    return encode_groups(groups, tokenizer, policy, report), report


def tokenised_groups(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, name: str
) -> Dataset:
    """Rows of texts as token ids.

    Raises:
        DataError: too many rows cannot be used.
    """
    numbered: Any = enumerate(dataset, start=1)
    made, report = encoded(numbered, tokenizer, args, name)
    split = next((row for row in made if "control_tokens_split" in row.notes), None)
    tell(report, args, name, split and split.group.row)
    return group_table(made)


def unpaired(dataset: Dataset) -> Dataset:
    """Pairs as rows of one completion each, in TRL's order: a thousand chosen, their rejected ones.

    Columns of both sides stay with their side; others are said of either.
    """
    made: dict[str, list[Any]] = {}
    batches: Any = dataset.iter(batch_size=UNPAIRED_AT_ONCE)
    for batch in batches:
        for column, values in unpaired_rows(batch).items():
            made.setdefault(column, []).extend(values)
    return Dataset.from_dict(made)


def unpaired_rows(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of a batch of pairs, as those of all chosen and then all rejected completions."""
    sided = {end: one for end, one in SIDED.items() if f"chosen{end}" in batch}
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    if "prompt" not in batch and "chosen" in batch:
        rows = [extract_prompt(row) for row in rows]
    made: dict[str, list[Any]] = {}
    for side in ("chosen", "rejected"):
        for row in rows:
            one = {k: v for k, v in row.items() if not k.startswith(("chosen", "rejected"))}
            one |= {name: row[side + end] for end, name in sided.items()}
            if one.get("finished", True) is None:
                one["finished"] = True
            for column, value in (one | {"label": side == "chosen"}).items():
                made.setdefault(column, []).append(value)
    return made


def as_groups(dataset: Dataset) -> Dataset:
    """Rows of one completion each as groups of one."""
    columns: dict[str, list[Any]] = {}
    for name in dataset.column_names:
        values: Any = dataset[name]
        if name in SINGULAR:
            columns[SINGULAR[name]] = [[value] for value in values]
        else:
            columns[name] = list(values)
    return Dataset.from_dict(columns)


def gathered(dataset: Dataset) -> Dataset:
    """Groups of one `group_id` and prompt, or else of one prompt, as one.

    They come in the order in which they are first seen, and so do their completions.
    """
    lists = [name for name in LISTS if name in dataset.column_names]
    groups: dict[Any, dict[str, Any]] = {}
    for row in _rows(dataset):
        key = (row.get("group_id"), tuple(row["prompt_ids"]))
        if key not in groups:
            groups[key] = dict(row)
            continue
        for name in lists:
            groups[key][name] = groups[key][name] + row[name]
    return Dataset.from_list(list(groups.values()))


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    rows: Any = dataset
    yield from rows


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
        # Without a prompt nothing predicts a completion's first token.
        if not completions or min(map(len, completions)) < (1 if prompt else 2):
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
