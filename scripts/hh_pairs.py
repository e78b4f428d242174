"""Pairs for the table of hh_table.py: trained on, the same with flipped labels, and held out."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.pairs import PreferencePair
from align.errors import DataError, RecipeError
from align.policies.loading import load_tokenizer
from align.recipe import Recipe
from align.runs.folder import write_atomically
from align.stages.pairs import read_recipe_pairs
from align.stages.policies import policy_folder
from align.tokens.tokenized_pair import TokenizedPair

TRAIN, FLIPPED, HELD_OUT = "train.jsonl", "flipped.jsonl", "held_out.jsonl"


@dataclass(frozen=True)
class Split:
    """Pairs by what they are for."""

    train: list[PreferencePair]
    held_out: list[PreferencePair]


def split_of(pairs: Sequence[PreferencePair], *, train: int, held_out: int, seed: int) -> Split:
    """Draws both parts; the dialogues of one first question are all on one side.

    Args:
        pairs: of dialogues.
        train: pairs to train on at most.
        held_out: pairs to measure on.
        seed: of the choice.

    Raises:
        DataError: too few pairs for both.
    """
    dialogues: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        dialogues.setdefault(_first_question(pair), []).append(pair)
    drawn = list(dialogues.values())
    random.Random(f"hh/split/{seed}").shuffle(drawn)
    kept: list[PreferencePair] = []
    rest: list[PreferencePair] = []
    for dialogue in drawn:
        # A dialogue that would be cut in two trains.
        (kept if len(kept) + len(dialogue) <= held_out else rest).extend(dialogue)
    if len(kept) < held_out or not rest:
        raise DataError(
            f"{len(pairs)} usable pairs are too few for {held_out} held out and some to train on. "
            "Give a larger file, or a smaller --held-out."
        )
    return Split(rest[:train], kept)


def _first_question(pair: PreferencePair) -> str:
    if isinstance(pair.prompt, str):
        return pair.prompt
    return next(turn.content for turn in pair.prompt if turn.role == "user")


def with_flips(pairs: Sequence[PreferencePair], *, share: float, seed: int) -> list[PreferencePair]:
    """The same pairs in the same order; chosen and rejected exchanged in `share` of them."""
    wrong = set(
        random.Random(f"hh/flips/{seed}").sample(range(len(pairs)), round(share * len(pairs)))
    )
    return [
        pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})
        if number in wrong
        else pair
        for number, pair in enumerate(pairs)
    ]


def written_pairs(
    folder: Path, recipe: Recipe, *, train: int, held_out: int, flips: float, seed: int
) -> dict[str, Any]:
    """Writes the files of pairs once, and says what they hold.

    Args:
        folder: of the files.
        recipe: its `data` section says which rows are read, and which are too long.
        train: pairs to train on at most.
        held_out: pairs to measure on.
        flips: share of the training pairs whose labels are exchanged in `FLIPPED`.
        seed: of the choice and of the flips.

    Raises:
        DataError: too few pairs.
        RecipeError: the files are there, and were made otherwise.
    """
    about = folder / "pairs.json"
    asked = {
        "data": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_name_or_path,
        "train": train,
        "held_out": held_out,
        "flips": flips,
        "seed": seed,
    }
    if about.is_file():
        found = json.loads(about.read_text())
        if found["asked"] != asked:
            changed = sorted(key for key in asked if found["asked"].get(key) != asked[key])
            raise RecipeError(
                f"{folder} holds a table of other pairs ({', '.join(changed)} differs). Give this "
                "one its own --out, or delete the old one."
            )
        return found
    start = policy_folder(recipe.model)
    read = read_recipe_pairs(recipe, start, load_tokenizer(recipe.model, start))
    split = split_of([row.pair for row in read.train], train=train, held_out=held_out, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        TRAIN: split.train,
        FLIPPED: with_flips(split.train, share=flips, seed=seed),
        HELD_OUT: split.held_out,
    }
    for name, pairs in parts.items():
        write_atomically(folder / name, "".join(map(_line, pairs)))
    counts = read.counts()
    found = {
        "asked": asked,
        "read": counts["read"],
        "dropped": counts["dropped"],
        "train": len(split.train),
        "held_out": len(split.held_out),
        "chosen_is_shorter": shorter(read.train, split.held_out),
        "sha256": hashlib.sha256((folder / TRAIN).read_bytes()).hexdigest()[:16],
    }
    # Last, so that files without it are written again.
    write_atomically(about, json.dumps(found, indent=1) + "\n")
    return found


def shorter(rows: Sequence[TokenizedPair], held_out: Sequence[PreferencePair]) -> list[int]:
    """What the rule "the shorter answer is the better one" gets right: [pairs, of unequal ones]."""
    wanted = {pair.id for pair in held_out}
    gaps = [len(row.rejected_ids) - len(row.chosen_ids) for row in rows if row.pair.id in wanted]
    return [sum(gap > 0 for gap in gaps), sum(gap != 0 for gap in gaps)]


def _line(pair: PreferencePair) -> str:
    return pair.model_dump_json(exclude={"source", "row"}, exclude_none=True) + "\n"
