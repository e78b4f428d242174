# pyright: basic
"""Data sets of pairs: TRL's preference format, or token ids."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.data_utils import extract_prompt

from align.data.formats.pairs import pairs_from_rows
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import DataError
from align.reference import SCORED_COLUMNS
from align.tokens.dataset import OPTIONAL_COLUMNS, to_dataset
from align.tokens.encoding import encode_pairs
from align.tokens.rendered_rows import encode_rendered, needs_template
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.vision.columns import IMAGE_COLUMNS, sides_in
from align.trainers.config import PreferenceConfig
from align.trainers.live import LiveRoles
from align.trainers.pair_kind import PAIRS, SCALARS, TOKEN_WEIGHTS
from align.trainers.rows import UNSHOWN, RowPreparation, tell

logger = logging.getLogger(__name__)


class PairRows(RowPreparation, LiveRoles):
    """The part of a trainer whose rows are pairs."""

    kind = PAIRS

    def _is_tokenised(self, columns: Collection[str]) -> bool:
        # A pipeline's rows bring ids beside their texts; those are checked against each other.
        return "prompt_ids" in columns and "chosen" not in columns

    def _tokenised_table(
        self, dataset: Dataset, processing_class: Any, args: Any, name: str
    ) -> Dataset:
        return tokenised(dataset, processing_class, args, name)

    def _tokenised_row(
        self, row: Mapping[str, Any], number: int, processing_class: Any, args: Any, name: str
    ) -> list[dict[str, Any]]:
        try:
            made, _ = tokenised_rows([(number + 1, row)], processing_class, args, name)
        except DataError as error:
            logger.warning("Row %d of the %s data is left out. %s", number, name, error)
            return []
        return [
            {
                **{column: getattr(one, column) for column in SCORED_COLUMNS},
                **{column: getattr(one.pair, column) for column in (*SCALARS, *TOKEN_WEIGHTS)},
            }
            for one in made
        ]

    def _refuse_without_signal(self, dataset: Dataset, name: str) -> None:
        refuse_rows_without_signal(dataset, name)

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed log-probs of a batch's completions under the reference, as TRL gives them.

        Args:
            model: a frozen model; the policy itself stands for the reference as it was before
                training where an adapter is trained, as in TRL.
            inputs: a batch of this trainer's own collator.

        Returns:
            chosen [B] and rejected [B], in nats.

        Raises:
            RecipeError: the batch is another collator's, or `ld_alpha` is set.
        """
        places: list[Tensor] = []
        found: list[Tensor] = []
        for part, logps in self._of_reference(model, inputs, "parts"):
            sums = [side.total() for side in (logps.chosen, logps.rejected)]
            found.append(torch.stack(sums, dim=1))
            places.append(part["place"])
        chosen, rejected = torch.cat(found)[torch.cat(places).argsort()].unbind(dim=1)
        return chosen, rejected


def tokenised(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, name: str
) -> Dataset:
    """Rows in TRL's preference format as token ids, with the checks that a recipe's rows get.

    Their texts stay beside the ids, for callbacks that show them.

    Raises:
        DataError: too many rows cannot be used.
    """
    numbered: Any = enumerate(dataset, start=1)
    made, report = tokenised_rows(numbered, tokenizer, args, name)
    split = next((row for row in made if "control_tokens_split" in row.notes), None)
    tell(report, args, name, split and split.pair.row)
    columns = to_dataset(made)
    texts = [
        column
        for column in dataset.column_names
        if column not in {*columns.column_names, *OPTIONAL_COLUMNS, *PAIRS.role_columns, *UNSHOWN}
    ]
    kept = dataset.select_columns(texts).select([row.pair.row - 1 for row in made])
    return concatenate_datasets([columns, kept.flatten_indices()], axis=1) if texts else columns


def tokenised_rows(
    numbered: Iterable[tuple[int, Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    args: PreferenceConfig,
    name: str,
) -> tuple[list[TokenizedPair], RowReport]:
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
    if any(needs_template(row) for _, row in rows):
        with_prompts = (
            (i, row if row.get("prompt") else extract_prompt(dict(row))) for i, row in rows
        )
        return encode_rendered(with_prompts, tokenizer, policy, f"{name} data")
    in_place = ((f"{name} data", i, row) for i, row in rows)
    pairs, report = pairs_from_rows(
        in_place, source=f"The {name} data", format="trl", policy=policy
    )
    return encode_pairs(pairs, tokenizer, policy, report), report


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
        # Without a prompt nothing predicts a completion's first token.
        if min(len(chosen), len(rejected)) < (1 if prompt else 2):
            raise DataError(f"Row {i} of the {name} data has no prompt or no completion tokens.")
        if chosen == rejected and not differ[i]:
            raise DataError(
                f"Row {i} of the {name} data has the same tokens as chosen and as rejected. It "
                "has no gradient, but Adam would turn its rounding errors into steps; leave it out."
            )
