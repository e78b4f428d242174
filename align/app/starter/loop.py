# pyright: basic
"""The starter recipe that goes through rounds, on prompts and a reward."""

from __future__ import annotations

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
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.prompt_files import read_prompts
from align.data.row_policy import RowPolicy
from align.data.sources import open_rows
from align.errors import DataError, RecipeError
from align.objectives import Objective
from align.policies.base import Sampling
from align.policies.prompting import Prompting
from align.registry import WORLD
from align.tokens.tokenized_pair import TokenizedPair


def loop_text(wish: Wish, found: Found, objective: Objective) -> str:
    """The text of the recipe.

    Raises:
        DataError: the prompts cannot be read, or none can be asked.
    """
    assert wish.reward is not None
    new = min(128 if found.here.gpu is None else 512, found.context // 2)
    samples = 4
    lengths = _prompt_lengths(wish, found, new)
    per_round = min(len(lengths), 64 if found.here.gpu is None else 512)
    totals = [length + new for length in lengths]
    longest, why_longest = chosen_length(totals, found.context, "prompts with an answer")
    pairs = _stand_ins(found, longest)
    fit = fit_weights(found.named.section, found.config, objective, pairs, found.here)
    prompts = source_lines(wish, "source", f"{len(lengths)} prompts")
    prompts.append(Line("per_round", per_round, "asked in a round; all are, in turn"))
    temperature = 1.0 if found.named.section.is_world else 0.8
    stages = [
        Line("", {"run": "generate", "samples": samples, "max_new_tokens": new,
                  "temperature": temperature}, "the policy answers"),
        Line("", {"run": "judge", "by": wish.reward}, "larger is better"),
        Line("", {"run": "select", "rule": "best_vs_worst"}, "one pair a prompt; ties make none"),
        Line("", {"run": "train"}, "from where the last round ended"),
    ]  # fmt: skip
    return text_of(
        heading(wish, found),
        {
            "model": model_lines(found, fit),
            "roles": role_lines(objective, in_loop=True),
            "prompts": prompts,
            "data": [Line("max_length", longest, why_longest)],
            "objective": objective_lines(objective),
            "train": train_lines(fit, per_round, longest, found.here),
            "evaluate": [Line("suite", [], "name a task, a benchmark, or data.eval_pairs here")],
            "rounds": Line("rounds", 3, "the same command with more goes on"),
            "each_round": Line("each_round", stages),
        },
    )


def _prompt_lengths(wish: Wish, found: Found, new: int) -> list[int]:
    """Tokens of every prompt that can be asked.

    Raises:
        DataError: none.
    """
    if wish.data.startswith(WORLD):
        raise RecipeError(
            f"--data {wish.data}: a world judges itself, so its loops stand in recipes/ ready made."
        )
    try:
        prompts, _ = read_prompts(
            wish.data,
            split=wish.split,
            columns=columns_of(wish),
            policy=RowPolicy(max_dropped=1.0),
        )
    except DataError as error:
        raise DataError(f"{with_hint(str(error))}{_columns_seen(wish)}") from error
    begun = Prompting(found.tokenizer).begin(
        prompts, 1, Sampling(max_new_tokens=new), found.context
    )
    if not begun.ids:
        raise DataError(f"None of the {len(prompts)} prompts of {wish.data} can be asked.")
    return [len(ids) for ids in begun.ids.values()]


def _columns_seen(wish: Wish) -> str:
    """What the first row has, where rows can be read at all."""
    first = next(open_rows(wish.data, wish.split, None), None)
    if first is None or isinstance(first[2], RowProblem):
        return ""
    return (
        f" The first row has the columns {', '.join(map(str, first[2]))}: say with --columns "
        "question=<theirs> which one is asked as a user's turn, or prompt=<theirs> as it stands."
    )


def _stand_ins(found: Found, longest: int) -> list[TokenizedPair]:
    """Pairs of the greatest length, for the estimate of memory: none is there before a round."""
    ids = [0] * (longest // 2)
    pair = PreferencePair(prompt="p", chosen="c", rejected="r", source="", row=1)
    return [TokenizedPair(ids, ids, ids, pair, ())] * 8
