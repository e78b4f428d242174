# pyright: basic
"""What an objective is over, pairs or groups, and what that means wherever a policy is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset

from align.data.groups import CompletionGroup
from align.data.pairs import PreferencePair
from align.data.records import Record
from align.objectives import GroupObjective, Objective
from align.tokens.dataset import to_dataset
from align.tokens.encoding import encode_pairs
from align.tokens.groups import encode_groups, group_table
from align.trainers.groups import GroupTrainer
from align.trainers.preference import PreferenceTrainer


@dataclass(frozen=True)
class TrainedRows:
    """Rows of one kind.

    Attributes:
        name: of the recipe's key, a loop's artefact, and the step in a ledger.
        record: a row as stages hand it on.
        encode: records, tokenizer, policy and report -> tokenised rows.
        table: tokenised rows -> the columns that the trainer reads.
        trainer: who trains on them.
    """

    name: Literal["pairs", "groups"]
    record: type[Record]
    encode: Callable[..., list[Any]]
    table: Callable[[Sequence[Any]], Dataset]
    trainer: type[Any]

    def read(self, row: Mapping[str, Any]) -> Any:
        """The record of a row, without the provenance that a pipeline gave it."""
        known = self.record.model_fields
        return self.record.model_validate({k: v for k, v in row.items() if k in known})


PAIRS = TrainedRows("pairs", PreferencePair, encode_pairs, to_dataset, PreferenceTrainer)
GROUPS = TrainedRows("groups", CompletionGroup, encode_groups, group_table, GroupTrainer)


def rows_for(objective: Objective | GroupObjective) -> TrainedRows:
    """The kind of rows that an objective learns from."""
    return GROUPS if isinstance(objective, GroupObjective) else PAIRS
