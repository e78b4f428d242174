# pyright: basic
"""A finished run's answers before and after, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from align.app.named_models import named_model
from align.data.prompts import Prompt
from align.errors import DataError, RecipeError
from align.judges.base import Answer
from align.judges.table import question_of
from align.policies.base import Completion, Failed, Sampling
from align.policies.in_process import InProcessPolicy
from align.recipe import Recipe, load_recipe
from align.registry import WORLD
from align.runs.folder import write_atomically
from align.stages.pairs import held_out_rows
from align.stages.policies import load_whole, policy_folder
from align.stages.prompts import PromptSource
from align.worlds import world


def show_samples(run: Path, n: int, max_new_tokens: int) -> Table:
    """The likeliest answers to `n` prompts, of the policy that the run began with and of its own.

    Held-out prompts where the run has some: of its world, or of `data.eval_pairs`; else the first
    of the file that it was asked. They are written to `samples.jsonl` in the run's folder too.

    Raises:
        RecipeError: the folder is no finished run of a language model.
        DataError: there is no prompt.
    """
    recipe = _recipe_of(run)
    named = named_model(str(run))
    tokenizer = named.tokenizer()
    asked = _prompts(recipe, tokenizer, n)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0, keep_unfinished=True)

    def answers(model: Any) -> list[str]:
        drawn = InProcessPolicy(model, tokenizer).generate(asked, 1, sampling, 0)
        return [_text(of[0]) for of in drawn]

    # One after the other: two models need not fit into memory.
    before = answers(load_whole(recipe.model, policy_folder(recipe.model)))
    after = answers(named.model())
    marks = [_marks(recipe, asked, texts) for texts in (before, after)]
    lines = [
        json.dumps({"prompt": question_of(p.prompt), "before": b, "after": a}, ensure_ascii=False)
        for p, b, a in zip(asked, before, after, strict=True)
    ]
    write_atomically(run / "samples.jsonl", "\n".join(lines) + "\n")
    return _table(asked, before, after, marks)


def _recipe_of(run: Path) -> Recipe:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(f"{run} is no run's folder: it has no recipe.yaml.")
    return load_recipe(path, [])


def _prompts(recipe: Recipe, tokenizer: Any, n: int) -> list[Prompt]:
    rows = recipe.data.groups or recipe.data.pairs or ""
    source = recipe.prompts.source if recipe.prompts is not None else rows
    if source.startswith(WORLD):
        return world(source).prompts("held_out", n, seed=recipe.evaluate.seed)
    if recipe.data.eval_pairs is not None:
        pairs = [row.pair for row in held_out_rows(recipe, tokenizer)]
        known = {pair.group_id or str(pair.prompt): pair for pair in pairs}
        found = [
            Prompt(prompt=pair.prompt, images=pair.images, source=pair.source, row=pair.row)
            for pair in known.values()
            # Prompts show pictures before the words of their first user turn.
            if pair.image_places is None
        ]
    elif recipe.prompts is not None:
        found = PromptSource(recipe.prompts, recipe.data).of_round(1)
    else:
        raise DataError(
            "The run kept no prompts of its own to ask: name some with data.eval_pairs, or ask a "
            "file of prompts with `align generate`."
        )
    return found[:n]


def _text(drawn: Completion | Failed) -> str:
    if isinstance(drawn, Failed):
        return f"({drawn.reason}: {drawn.detail})"
    written = drawn.completion
    return written if isinstance(written, str) else written[-1].content


def _marks(recipe: Recipe, asked: Sequence[Prompt], texts: Sequence[str]) -> list[str]:
    """A tick or a cross before each answer where a world can check it."""
    if recipe.prompts is None or not recipe.prompts.source.startswith(WORLD):
        return [""] * len(texts)
    try:
        judge = world(recipe.prompts.source).checks(loosely=False)
    except RecipeError:
        return [""] * len(texts)
    items = [Answer(p.prompt, text, p.id) for p, text in zip(asked, texts, strict=True)]
    return ["✓ " if score == 1.0 else "✗ " for score in judge.score(items)]


def _table(
    asked: Sequence[Prompt],
    before: Sequence[str],
    after: Sequence[str],
    marks: Sequence[Sequence[str]],
) -> Table:
    shown = Table(title="Likeliest answers before and after", show_lines=True)
    shown.add_column("prompt", ratio=2)
    shown.add_column("before", ratio=3)
    shown.add_column("after", ratio=3)
    for prompt, was, now, old, new in zip(asked, before, after, *marks, strict=True):
        question = question_of(prompt.prompt)
        shown.add_row(*map(Text, (question, old + was.strip(), new + now.strip())))
    return shown
