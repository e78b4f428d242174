"""The rows of a reward model, a preference model, or supervised fine-tuning: read and laid out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from align.data.demonstrations import read_demonstrations
from align.data.problems import DroppedRow, RowProblem
from align.data.row_report import RowReport
from align.errors import DataError
from align.recipe import KindRecipe, SFTRecipe
from align.recipe.kinds import Demonstrations
from align.stages.pairs import Pairs, first_of, hold_out, read_recipe_pairs
from align.tokens.cut import cut_pair
from align.tokens.dataset import present_columns
from align.tokens.encoding import encode_pairs
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.whole_rows import WholeRows
from align.trainers.sft import NO_LABEL

logger = logging.getLogger("align")


def read_kind_pairs(recipe: KindRecipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Reads, or samples, the rows that a recipe trains and is measured on.

    Of demonstrations the chosen side is what is imitated; the other one is a stand-in.

    Args:
        recipe: its `data` section.
        folder: of the start policy, from which a world samples.
        tokenizer: the start policy's.

    Raises:
        DataError: rows that cannot be read, that carry what the kind does not read, or too many
            that cannot be used.
    """
    if hasattr(tokenizer, "image_processor"):
        raise DataError(
            f"model.model_name_or_path reads pictures, and `kind: {recipe.kind}` trains on text: "
            "choose a model of text."
        )
    if isinstance(recipe, SFTRecipe):
        pairs = _demonstrations(recipe, folder, tokenizer)
    else:
        pairs = read_recipe_pairs(recipe, folder, tokenizer)
        if recipe.kind == "preference_model":
            pairs = _both_answers_fit(recipe, pairs, tokenizer)
    _refuse_unread(recipe, pairs.train)
    return pairs


def _demonstrations(recipe: SFTRecipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    data = recipe.data
    if data.completions is None:
        pairs = read_recipe_pairs(recipe, folder, tokenizer)
    else:
        rows, report = _completions(data, data.completions, data.limit, tokenizer)
        if data.eval_pairs is not None:
            held_out, _ = _completions(data, data.eval_pairs, None, tokenizer)
            pairs = Pairs(rows, held_out, report)
        else:
            pairs = Pairs(*hold_out(rows, data), report)
    return replace(
        pairs,
        train=_told_once(pairs.train, pairs.report),
        held_out=_told_once(pairs.held_out, pairs.report),
    )


def _completions(
    data: Demonstrations, source: str, limit: int | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedPair], RowReport]:
    rows, report = read_demonstrations(
        source, split=data.split, revision=data.revision, columns=data.columns, policy=data
    )
    return encode_pairs(first_of(rows, report, limit), tokenizer, data, report), report


def _told_once(rows: Sequence[TokenizedPair], report: RowReport) -> list[TokenizedPair]:
    """Each completion of a prompt once: pairs of one prompt often share the better one."""
    kept: list[TokenizedPair] = []
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for row in rows:
        key = (tuple(row.prompt_ids), tuple(row.chosen_ids))
        if key in seen:
            report.notes["same_completion"] += 1
            continue
        seen.add(key)
        kept.append(row)
    return kept


def _both_answers_fit(
    recipe: KindRecipe, pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> Pairs:
    """Pairs whose prompt and two answers are within `max_length` together."""
    limit: int | None = recipe.data.max_length
    if limit is None:
        return pairs
    laid_out = WholeRows(tokenizer)
    bos: Any = tokenizer.bos_token_id

    def fitted(rows: Sequence[TokenizedPair]) -> list[TokenizedPair]:
        kept: list[TokenizedPair] = []
        for row in rows:
            beyond = len(_two(laid_out, row)[0]) - limit
            try:
                kept.append(row if beyond <= 0 else _shorter(row, beyond, recipe, bos))
            except RowProblem as problem:
                dropped = DroppedRow.of(problem, row.pair.source, row.pair.row)
                recipe.data.obey(dropped)
                pairs.report.drop_kept(dropped)
        return kept

    found = replace(pairs, train=fitted(pairs.train), held_out=fitted(pairs.held_out))
    pairs.report.check(recipe.data.max_dropped)
    return found


def _shorter(row: TokenizedPair, beyond: int, recipe: KindRecipe, bos: int | None) -> TokenizedPair:
    """A row with `beyond` tokens less of its prompt, where the recipe cuts prompts.

    Raises:
        RowProblem: `too_long`.
    """
    longest = max(len(row.chosen_ids), len(row.rejected_ids))
    room = len(row.prompt_ids) + longest - beyond
    if recipe.data.on_too_long != "cut_prompt":
        detail = (
            f"{beyond} tokens more of prompt and both answers than data.max_length, which is "
            f"{recipe.data.max_length}"
        )
        raise RowProblem("too_long", "rejected", detail)
    return cut_pair(row, recipe.data.model_copy(update={"max_length": room}), bos)


def _refuse_unread(recipe: KindRecipe, rows: Sequence[TokenizedPair]) -> None:
    """Raise where all rows carry what would silently be left aside."""
    if not rows:
        raise DataError("No row is left to train on: mend the rows, or data.held_out.")
    present = present_columns(rows)
    how_on = {
        "preference": "a Bradley-Terry reward model knows no soft labels; train `kind: "
        "preference_model`, or leave that column out",
        "chosen_token_weight": "no token is weighed here; leave that column out",
    }
    refused = {"reward": ("preference", "chosen_token_weight")}
    for column in refused.get(recipe.kind, ("chosen_token_weight",)):
        if present[column] == len(rows):
            raise DataError(f"The rows carry `{column}`, and {how_on[column]}.")
    if recipe.kind == "preference_model" and present["margin"]:
        logger.warning("`kind: preference_model` does not read the column margin.")


def rows_of(kind: str, rows: Sequence[TokenizedPair], tokenizer: Any) -> Dataset:
    """The rows as the trainer of a kind takes them, with where each came from."""
    laid_out = WholeRows(tokenizer)
    columns: dict[str, list[Any]] = {
        "source": [row.pair.source for row in rows],
        "row": [row.pair.row for row in rows],
    }
    if kind == "sft":
        columns["input_ids"] = [[*row.prompt_ids, *row.chosen_ids] for row in rows]
        columns["labels"] = [
            [NO_LABEL] * len(row.prompt_ids) + list(row.chosen_ids) for row in rows
        ]
        return Dataset.from_dict(columns)
    lay = _one if kind == "reward" else _two
    sides = [lay(laid_out, row) for row in rows]
    columns["chosen_ids"] = [first for first, _ in sides]
    columns["rejected_ids"] = [second for _, second in sides]
    label = "margin" if kind == "reward" else "preference"
    if rows and present_columns(rows)[label] == len(rows):
        columns[label] = [getattr(row.pair, label) for row in rows]
    return Dataset.from_dict(columns)


def _one(laid_out: WholeRows, row: TokenizedPair) -> tuple[list[int], list[int]]:
    """The chosen answer's row, and the rejected one's."""
    chat = row.pair.is_conversational
    return (
        laid_out.one(row.prompt_ids, row.chosen_ids, chat=chat),
        laid_out.one(row.prompt_ids, row.rejected_ids, chat=chat),
    )


def _two(laid_out: WholeRows, row: TokenizedPair) -> tuple[list[int], list[int]]:
    """Both answers, the chosen one first, and the rejected one first."""
    chat = row.pair.is_conversational
    chosen, rejected = row.chosen_ids, row.rejected_ids
    return (
        laid_out.two(row.prompt_ids, chosen, rejected, chat=chat),
        laid_out.two(row.prompt_ids, rejected, chosen, chat=chat),
    )
