"""The rows of a recipe that trains once, pairs or groups; with what its suite is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.app.fitting import check_columns
from align.app.fitting_groups import check_group_columns
from align.data.row_report import RowReport
from align.recipe import Recipe
from align.stages.groups import read_recipe_groups
from align.stages.pairs import held_out_rows, read_recipe_pairs
from align.tokens.groups import TokenizedGroup
from align.tokens.tokenized_pair import TokenizedPair


@dataclass(frozen=True)
class RecipeRows:
    """Tokenised rows of a recipe.

    Attributes:
        train: pairs, or groups.
        held_out: of the same kind; evaluated while training.
        measured: pairs that the suite reads before and after.
        report: the count of every row that was read.
        counts: the same as plain values, and the rows trained on and held out.
    """

    train: Sequence[TokenizedPair] | Sequence[TokenizedGroup]
    held_out: Sequence[TokenizedPair] | Sequence[TokenizedGroup]
    measured: Sequence[TokenizedPair]
    report: RowReport
    counts: dict[str, Any]


def read_rows(recipe: Recipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> RecipeRows:
    """Reads, or samples, what the recipe's objective learns from.

    Args:
        recipe: its `data` section and its objective.
        folder: of the start policy, from which a world samples.
        tokenizer: the start policy's.

    Raises:
        DataError: rows that cannot be read, too many that cannot be used, or a column that the
            objective needs is missing.
        RecipeError: groups cannot be had of this model or world.
    """
    if recipe.learns_from == "pairs":
        pairs = read_recipe_pairs(recipe, folder, tokenizer)
        check_columns(recipe, pairs.train)
        return RecipeRows(pairs.train, pairs.held_out, pairs.held_out, pairs.report, pairs.counts())
    groups = read_recipe_groups(recipe, folder, tokenizer)
    check_group_columns(recipe, groups.train)
    measured = held_out_rows(recipe, tokenizer)
    return RecipeRows(groups.train, groups.held_out, measured, groups.report, groups.counts())
