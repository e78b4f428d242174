"""`align check`: the dry run of a recipe of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import registry
from align.app.check import check
from align.app.check_diffusion import check_diffusion
from align.app.check_groups import check_groups
from align.app.check_kind import check_kind
from align.app.check_loop import check_loop
from align.app.cost import Machine
from align.app.data import check_data
from align.app.diffusion_recipe import default_diffusion_run, load_diffusion_recipe
from align.app.evaluation import check_evaluations
from align.app.launch import ALONE, Launch
from align.app.recipe_rows import read_rows
from align.app.timing import timed_steps
from align.errors import RecipeError
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


@dataclass(frozen=True)
class Wanted:
    """What `align check` is asked for beyond the recipe.

    Attributes:
        example: show one row as it will be trained on.
        time: train two steps, for the time that a run will take.
        launch: a file for `accelerate launch --config_file`.
        memory: of one device, in 10^9 bytes.
    """

    example: bool = False
    time: bool = False
    launch: Path | None = None
    memory: float | None = None

    @property
    def of_one_training(self) -> bool:
        """Whether any of it is known only of recipes that train once, on pairs or groups."""
        return self.time or self.launch is not None or self.memory is not None


PLAIN = Wanted()


def check_recipe(
    path: Path, overrides: Sequence[str], wanted: Wanted = PLAIN, *, run_code: bool = False
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
    return "\n".join([*code, _checked(path, overrides, wanted)])


def _checked(path: Path, overrides: Sequence[str], wanted: Wanted) -> str:
    kind = kind_of(path, overrides)
    if wanted.of_one_training and (kind != "train" or load_recipe(path, overrides).is_loop):
        raise RecipeError(
            "--launch, --memory and --time are for recipes that train once on pairs or groups. "
            "Leave them out for this one."
        )
    if kind == "diffusion":
        diffusion = load_diffusion_recipe(path, overrides)
        return check_diffusion(diffusion, default_diffusion_run(path, diffusion))
    if kind == "data":
        return check_data(load_data_recipe(path, overrides), wanted.example)
    if kind == "eval":
        return check_evaluations(load_eval_recipe(path, overrides).evaluate.nodes())
    if kind in KINDS:
        of_kind = load_kind_recipe(path, overrides)
        return check_kind(of_kind, default_run(path, of_kind), wanted.example)
    recipe = load_recipe(path, overrides)
    planned = check_evaluations(benchmarks(recipe.evaluate.nodes()))
    found = check_loop(recipe, wanted.example) if recipe.is_loop else _run(recipe, path, wanted)
    return "\n".join([planned, found] if planned else [found])


def _run(recipe: Recipe, path: Path, wanted: Wanted) -> str:
    """The dry run of a recipe that trains once."""
    folder = policy_folder(recipe.model)
    tokenizer = load_tokenizer(recipe.model, folder)
    config = load_config(recipe.model, folder)
    refuse_rate_of(recipe.model, recipe.train, folder, config)
    rows = read_rows(recipe, folder, tokenizer)
    run_dir = default_run(path, recipe)
    machine = Machine.here(run_dir, use_cpu=recipe.train.use_cpu)
    if wanted.memory is not None:
        machine = machine.with_memory(wanted.memory)
    known: dict[str, Any] = {
        "machine": machine,
        "launch": ALONE if wanted.launch is None else Launch.of(wanted.launch),
        "train": rows.train,
        "held_out": rows.held_out,
        "report": rows.report,
        "tokenizer": tokenizer,
        "model_config": config,
        "run_dir": run_dir,
        "show_example": wanted.example,
    }
    if recipe.learns_from == "groups":
        found = str(check_groups(recipe, measured=rows.measured, **known))
    else:
        found = str(check(recipe, **known))
    if wanted.time:
        found += f"\n{timed_steps(recipe, folder, tokenizer, rows.train)}"
    return found
