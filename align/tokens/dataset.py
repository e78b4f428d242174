"""The columns of tokenised rows that a trainer reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets

from align.reference import SCORED_COLUMNS
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.vision.columns import PIXELS, image_columns
from align.types import PAIR_KINDS

OPTIONAL_COLUMNS = (
    "chosen_score",
    "rejected_score",
    "preference",
    "margin",
    "chosen_token_weight",
    "rejected_token_weight",
    "group_id",
)


def to_dataset(rows: Sequence[TokenizedPair]) -> datasets.Dataset:
    """The columns a trainer reads; an optional one only where every row has it.

    Token weights are cut with their completion. The columns are prompt_ids, chosen_ids,
    rejected_ids, row_id, source, row, those of `OPTIONAL_COLUMNS`, `pair_kind` where all rows are
    of OPA-DPO's kinds, and those of `align.tokens.vision.columns` where a row shows pictures.
    """
    number, text = datasets.Value("float64"), datasets.Value("string")
    ids = datasets.List(datasets.Value("int64"))
    features: dict[str, Any] = {
        "prompt_ids": ids,
        "chosen_ids": ids,
        "rejected_ids": ids,
        "row_id": text,
        "source": text,
        "row": datasets.Value("int64"),
    }
    columns: dict[str, list[Any]] = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "chosen_ids": [row.chosen_ids for row in rows],
        "rejected_ids": [row.rejected_ids for row in rows],
        "row_id": [row.pair.id for row in rows],
        "source": [row.pair.source for row in rows],
        "row": [row.pair.row for row in rows],
    }
    present = present_columns(rows)
    for name in OPTIONAL_COLUMNS:
        if not rows or present[name] < len(rows):
            continue
        if name.endswith("_token_weight"):
            side = name.replace("_token_weight", "_ids")
            features[name] = datasets.List(number)
            columns[name] = [
                list(getattr(row.pair, name)[: len(getattr(row, side))]) for row in rows
            ]
        else:
            features[name] = text if name == "group_id" else number
            columns[name] = [getattr(row.pair, name) for row in rows]
    if any(row.pair.images is not None for row in rows):
        image_columns([row.pair for row in rows], columns, features)
    if rows and all(row.pair.pair_kind in PAIR_KINDS for row in rows):
        features["pair_kind"] = text
        columns["pair_kind"] = [row.pair.pair_kind for row in rows]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def scored_columns(
    dataset: datasets.Dataset, ids: Sequence[str] = SCORED_COLUMNS
) -> tuple[str, ...]:
    """What determines a policy's scores of the rows; `ids` names the columns of token ids."""
    return (*ids, *((PIXELS,) if PIXELS in dataset.column_names else ()))


def present_columns(rows: Sequence[TokenizedPair]) -> Counter[str]:
    """On how many rows each optional column has a value."""
    return Counter(
        name for row in rows for name in OPTIONAL_COLUMNS if getattr(row.pair, name) is not None
    )
