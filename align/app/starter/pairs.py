# pyright: basic
"""The starter recipe that trains once, on preference pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from align.app.starter.choices import (
    chosen_length,
    fit_weights,
    objective_lines,
    role_lines,
    train_lines,
)
from align.app.starter.text import Line, text_of
from align.app.starter.wish import (
    Found,
    Wish,
    columns_of,
    heading,
    model_lines,
    source_lines,
    with_hint,
)
from align.data.row_report import RowReport
from align.errors import DataError
from align.objectives import Objective
from align.recipe import Data, Evaluate, Recipe, Roles
from align.stages.pairs import read_recipe_pairs
from align.tokens.tokenized_pair import TokenizedPair
from align.types import ROLES

# Beyond this share of the rows, what is dropped is said in the recipe.
DROPPED = 0.05


def pairs_text(wish: Wish, found: Found, objective: Objective) -> str:
    """The text of the recipe.

    Raises:
        DataError: the pairs cannot be read.
    """
    pairs, report = _read(wish, found, objective)
    totals = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    longest, why_longest = chosen_length(totals, found.context)
    kept = [pair for pair, total in zip(pairs, totals, strict=True) if total <= longest]
    fit = fit_weights(found.named.section, found.config, objective, kept, found.here)
    kinds = Counter("messages" if p.pair.is_conversational else "plain text" for p in pairs)
    what = f"{len(pairs)} pairs, {' and '.join(kinds)}"
    if "plain text" in kinds and found.tokenizer.chat_template is not None:
        what += ", which the chat template has no part in"
    data = source_lines(wish, "pairs", what)
    data.append(Line("max_length", longest, why_longest))
    lost = (report.read - len(kept)) / report.read
    if lost > DROPPED:
        reasons = Counter(report.dropped) + Counter(too_long=len(pairs) - len(kept))
        named = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))
        data.append(Line("max_dropped", math.ceil(1000 * lost) / 1000, f"of the rows: {named}"))
    held_out, why_held_out = _held_out(kept)
    data.append(Line("held_out", held_out, why_held_out))
    suite = ["preference"] if held_out else []
    why_suite = "accuracy and margins on them, before and after" if held_out else "no pair to spare"
    return text_of(
        heading(wish, found),
        {
            "model": model_lines(found, fit),
            "roles": role_lines(objective, in_loop=False),
            "data": data,
            "objective": objective_lines(objective),
            "train": train_lines(fit, len(kept) - held_out, longest, found.here),
            "evaluate": [Line("suite", suite, why_suite)],
        },
    )


def _read(wish: Wish, found: Found, objective: Objective) -> tuple[list[TokenizedPair], RowReport]:
    """All pairs that can be used, tokenised and uncut.

    Raises:
        DataError: none, or columns of no known format.
    """
    recipe = Recipe(
        model=found.named.section.model_copy(update={"model_name_or_path": found.name}),
        roles=Roles(**{role: "start" for role in ROLES if role in objective.needs}),
        data=Data(
            pairs=wish.data,
            split=wish.split,
            columns=columns_of(wish),
            held_out=0,
            max_length=None,
            max_dropped=1.0,
        ),
        objective=objective,
        evaluate=Evaluate(suite=()),
    )
    try:
        read = read_recipe_pairs(recipe, found.named.folder, found.tokenizer)
    except DataError as error:
        raise DataError(with_hint(str(error))) from error
    return read.train, read.report


def _held_out(pairs: Sequence[TokenizedPair]) -> tuple[int, str]:
    different = len({tuple(pair.prompt_ids) for pair in pairs})
    if different < 2:
        return 0, "there is one prompt, and its pairs stay together"
    wanted = min(500, max(1, round(0.05 * len(pairs))))
    return wanted, "pairs kept for the evaluation"
