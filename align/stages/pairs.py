"""The pairs that a recipe trains and is measured on: read or sampled, tokenised, some held out."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from align.data.pair_files import read_pairs
from align.data.pairs import PreferencePair
from align.data.row_report import RowReport
from align.errors import DataError, MachineError
from align.policies import reading, sampling
from align.policies.loading import load_policy
from align.recipe import Data, KindRecipe, Recipe
from align.reference import tokenizer_digest, weights_digest
from align.registry import WORLD
from align.runs.cache import cached_folder, made_by
from align.tokens.encoding import encode_pairs
from align.tokens.tokenized_pair import TokenizedPair
from align.worlds import world

logger = logging.getLogger("align")

X = TypeVar("X")


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs of a recipe, and the count of every row that was read."""

    train: list[TokenizedPair]
    held_out: list[TokenizedPair]
    report: RowReport

    def counts(self) -> dict[str, Any]:
        """Rows read, kept, dropped by reason, trained on and held out."""
        stored = self.report.to_json()
        return {
            "read": stored["read"],
            "kept": stored["kept"],
            "dropped": stored["dropped"],
            "notes": stored["notes"],
            "train": len(self.train),
            "held_out": len(self.held_out),
        }


def read_recipe_pairs(
    recipe: Recipe | KindRecipe, folder: str, tokenizer: PreTrainedTokenizerBase
) -> Pairs:
    """Reads, or samples, the recipe's pairs, tokenises them and holds some out.

    Args:
        recipe: its `data` section.
        folder: of the start policy, from which a world samples.
        tokenizer: the start policy's.

    Raises:
        DataError: rows that cannot be read, or too many that cannot be used.
    """
    data: Data = recipe.data
    assert data.pairs is not None
    is_world = data.pairs.startswith(WORLD)
    source = str(_sampled(recipe, folder, tokenizer)) if is_world else data.pairs
    sources = [(source, data.revision, data.limit)]
    if data.eval_pairs is not None:
        sources.append((data.eval_pairs, None, None))
    (tokenized, report), *others = [_read(data, tokenizer, *source) for source in sources]
    if others:
        return Pairs(tokenized, others[0][0], report)
    train, held_out = hold_out(tokenized, data)
    return Pairs(train, held_out, report)


def held_out_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    """The rows of `data.eval_pairs`, tokenised; none where there are none.

    Raises:
        DataError: rows that cannot be read, or too many that cannot be used.
    """
    data = recipe.data
    return [] if data.eval_pairs is None else _read(data, tokenizer, data.eval_pairs, None, None)[0]


def _read(
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    revision: str | None,
    limit: int | None,
) -> tuple[list[TokenizedPair], RowReport]:
    """The first pairs of a source, tokenised, and the count of every row that was read."""
    try:
        pairs, report = read_pairs(
            source,
            split=data.split,
            revision=revision,
            columns=data.columns,
            format=data.reader,
            policy=data,
        )
        return encode_pairs(first_of(pairs, report, limit), tokenizer, data, report), report
    except (DataError, MachineError) as error:
        if source != data.eval_pairs:
            raise
        raise type(error)(str(error).replace("data.pairs", "data.eval_pairs")) from error


def first_of(
    pairs: list[PreferencePair], report: RowReport, limit: int | None
) -> list[PreferencePair]:
    """The first `limit` pairs; the report counts the others as a note and no longer as read."""
    if limit is None or len(pairs) <= limit:
        return pairs
    beyond = len(pairs) - limit
    report.read -= beyond
    report.kept -= beyond
    report.notes["beyond_limit"] = beyond
    return pairs[:limit]


def hold_out(
    tokenized: Sequence[TokenizedPair], data: Data
) -> tuple[list[TokenizedPair], list[TokenizedPair]]:
    """Splits off `data.held_out` pairs, all pairs of one prompt on the same side, in their order.

    Raises:
        DataError: nothing would be left to train on, or a share of so few pairs is none.
    """
    prompts = [(*row.prompt_ids, row.pair.images) for row in tokenized]
    return split_off(tokenized, prompts, data, "pairs")


def split_off(
    rows: Sequence[X], prompts: Sequence[Hashable], data: Data, noun: str
) -> tuple[list[X], list[X]]:
    """Splits off `data.held_out` rows, all rows of one prompt on the same side, in their order.

    Args:
        rows: of any kind.
        prompts: what each continues.
        data: says how many, or which share.
        noun: what errors call the rows.

    Raises:
        DataError: nothing would be left to train on, or a share of so few rows is none.
    """
    wanted = round(data.held_out * len(rows)) if data.held_out < 1 else int(data.held_out)
    if data.held_out and not wanted:
        hint = " without preference in evaluate.suite" if noun == "pairs" else ""
        raise DataError(
            f"data.held_out is {data.held_out:g} of {len(rows)} {noun}, which is none. Write a "
            f"number of {noun}, such as `held_out: 1`, or `held_out: 0`{hint}."
        )
    if wanted == 0:
        return list(rows), []
    of_prompt: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(i)
    together = list(of_prompt.values())
    random.Random(f"held_out/{data.seed}").shuffle(together)
    held: set[int] = set()
    for places in together:
        if len(held) >= wanted:
            break
        held.update(places)
    if len(held) == len(rows):
        raise DataError(
            f"data.held_out asks for {wanted} of {len(rows)} {noun}, which leaves none to train "
            "on; lower it."
        )
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )


def _sampled(recipe: Recipe | KindRecipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A file of pairs that the start policy itself made, sampled once for the same settings."""
    sample = recipe.data.sample
    assert sample is not None
    assert recipe.data.pairs is not None
    of = world(recipe.data.pairs)
    model = load_policy(recipe.model, folder)

    def build(target: Path) -> None:
        made = of.sample_pairs(
            model,
            tokenizer,
            problems=sample.prompts,
            samples_per_problem=sample.completions,
            temperature=sample.temperature,
            seed=sample.seed,
        )
        logger.info("Sampled from the start policy: %s", made)
        lines = [_line(pair) for pair in made.pairs]
        (target / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")

    parts = {
        "policy": weights_digest(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "sample": sample.model_dump(mode="json"),
        **made_by(inspect.getfile(type(of)), sampling.__file__, reading.__file__),
    }
    return cached_folder(f"worlds/{of.name}-pairs", parts, build) / "pairs.jsonl"


def _line(pair: PreferencePair) -> str:
    # Provenance is the file's own: its rows are counted where they are read.
    return pair.model_dump_json(exclude={"source", "row"}, exclude_none=True) + "\n"
