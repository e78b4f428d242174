"""Recipes of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align import registry
from align.app.diffusion_recipe import load_diffusion_recipe
from align.errors import RecipeError
from align.node import Node
from align.recipe import (
    code_named,
    explain,
    kind_of,
    load_data_recipe,
    load_eval_recipe,
    load_kind_recipe,
    load_recipe,
    resolved_yaml,
)
from align.recipe.explaining import parts_of


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """Read and check a recipe of any kind.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    match kind_of(path, overrides):
        case "train":
            return load_recipe(path, overrides)
        case "data":
            return load_data_recipe(path, overrides)
        case "eval":
            return load_eval_recipe(path, overrides)
        case "diffusion":
            return load_diffusion_recipe(path, overrides)
        case "reward" | "preference_model" | "sft":
            return load_kind_recipe(path, overrides)


def explained(key: str, run_code: bool) -> str:
    """What a key means, of a user's own node too.

    Raises:
        RecipeError: no such key, or it names code, which is not run to explain it.
    """
    words = [part.removeprefix(registry.WORLD) for part in parts_of(key)]
    code = [f"{registry.would_run(word)}" for word in words if registry.is_path(word)]
    if code and not run_code:
        raise RecipeError(
            f"{key} names code of its writer's own ({'; '.join(code)}), and what its keys mean is "
            "known only there. Look at it, then add --run-code."
        )
    return explain(key)


def shown(path: Path, overrides: Sequence[str], run_code: bool) -> str:
    """Every key of a recipe with its value.

    Raises:
        RecipeError: as for `load_any`, or it names code, which is not run to show it.
    """
    code = [f"{registry.would_run(word)}" for word in code_named(path, overrides)]
    if code and not run_code:
        raise RecipeError(
            f"{path} runs code of its writer's own ({'; '.join(code)}), and what its keys mean is "
            "known only there. Look at it, then add --run-code."
        )
    return resolved_yaml(load_any(path, overrides))
