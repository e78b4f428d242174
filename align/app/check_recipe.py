"""`align check`: the dry run of a recipe of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align import registry
from align.app.check import check
from align.app.check_diffusion import check_diffusion
from align.app.check_groups import check_groups
from align.app.check_kind import check_kind
from align.app.check_loop import check_loop
from align.app.data import check_data
from align.app.diffusion_recipe import default_diffusion_run, load_diffusion_recipe
from align.app.evaluation import check_evaluations
from align.app.recipe_rows import read_rows
from align.policies.loading import load_config, load_tokenizer
from align.policies.precision import refuse_rate_of
from align.recipe import (
    KINDS,
    Recipe,
    code_named,
    default_run,
    kind_of,
    load_data_recipe,
    load_eval_recipe,
    load_kind_recipe,
    load_recipe,
)
from align.stages.evaluate import benchmarks
from align.stages.policies import policy_folder


def check_recipe(
    path: Path, overrides: Sequence[str], show_example: bool, run_code: bool = False
) -> str:
    """The dry run: recipe, rows, tokens, memory and disk, without training.

    Code that the recipe names is shown and not run, unless `run_code` says so: the recipe may be
    somebody else's.
    """
    code = [f"code: {registry.would_run(word)}" for word in code_named(path, overrides)]
    if code and not run_code:
        return "\n".join(
            [
                "This recipe runs code of its writer's own:",
                *code,
                "Nothing of it was run, so nothing else is checked yet: look at it, then add "
                "--run-code.",
            ]
        )
    return "\n".join([*code, _checked(path, overrides, show_example)])


def _checked(path: Path, overrides: Sequence[str], show_example: bool) -> str:
    kind = kind_of(path, overrides)
    if kind == "diffusion":
        diffusion = load_diffusion_recipe(path, overrides)
        return check_diffusion(diffusion, default_diffusion_run(path, diffusion))
    if kind == "data":
        return check_data(load_data_recipe(path, overrides), show_example)
    if kind == "eval":
        return check_evaluations(load_eval_recipe(path, overrides).evaluate.nodes())
    if kind in KINDS:
        of_kind = load_kind_recipe(path, overrides)
        return check_kind(of_kind, default_run(path, of_kind), show_example)
    recipe = load_recipe(path, overrides)
    planned = check_evaluations(benchmarks(recipe.evaluate.nodes()))
    found = check_loop(recipe, show_example) if recipe.is_loop else _run(recipe, path, show_example)
    return "\n".join([planned, found] if planned else [found])


def _run(recipe: Recipe, path: Path, show_example: bool) -> str:
    """The dry run of a recipe that trains once."""
    folder = policy_folder(recipe.model)
    tokenizer = load_tokenizer(recipe.model, folder)
    config = load_config(recipe.model, folder)
    refuse_rate_of(recipe.model, recipe.train, folder, config)
    rows = read_rows(recipe, folder, tokenizer)
    known: dict[str, Any] = {
        "train": rows.train,
        "held_out": rows.held_out,
        "report": rows.report,
        "tokenizer": tokenizer,
        "model_config": config,
        "run_dir": default_run(path, recipe),
        "show_example": show_example,
    }
    if recipe.learns_from == "groups":
        return str(check_groups(recipe, measured=rows.measured, **known))
    return str(check(recipe, **known))
