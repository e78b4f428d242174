"""A recipe written back: every key resolved, and a short name for what it trains."""

# The stubs of PyYAML leave out most types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from align.node import Node
from align.recipe.data_recipe import DataRecipe
from align.recipe.kinds import KindRecipe
from align.recipe.own_code import code_digests
from align.recipe.schemas import ordered_fields
from align.recipe.sections import Data, Recipe
from align.recipe.yaml_rules import Dumper

# Keys of `data` that only groups have.
OF_GROUPS = ("groups", "label", "advantage")


def resolved_yaml(recipe: Node) -> str:
    """Every key of a recipe with its value; loading it gives an equal recipe."""
    return yaml.dump(
        plain_values(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def recipe_key(recipe: Node) -> str:
    """10 hex digits that name what a recipe trains.

    What may change under a run has no part: the hub section, a later step; how far a loop goes; and
    who works on a data set.
    """
    free = ("hub", "rounds", "keep", "work")
    content = {key: node for key, node in plain_values(recipe).items() if key not in free}
    # Another content of the file that a recipe names is another run; stages have keys of their own.
    has_stages = bool(content.get("each_round") or content.get("build"))
    if not has_stages and (code := code_digests(content)):
        content["code"] = code
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def plain_values(recipe: Node) -> dict[str, Any]:
    """The recipe as YAML holds it, own keys before inherited ones, without roles not given."""
    nodes = recipe.model_dump(mode="json")
    if isinstance(recipe, Recipe | DataRecipe):
        nodes["data"] = {key: nodes["data"][key] for key in ordered_fields(Data)}
    if isinstance(recipe, Recipe | DataRecipe | KindRecipe) and recipe.data.groups is None:
        # Recipes of pairs are written, and named, as before there were groups.
        nodes["data"] = {k: node for k, node in nodes["data"].items() if k not in OF_GROUPS}
    if isinstance(recipe, KindRecipe):
        unread = recipe.train.unread
        nodes["train"] = {k: node for k, node in nodes["train"].items() if k not in unread}
    if not isinstance(recipe, Recipe):
        return {key: node for key, node in nodes.items() if node is not None}
    nodes["roles"] = dict(recipe.roles.given)
    of_loops = ("prompts", "rounds", "each_round", "keep")
    unused = of_loops if not recipe.is_loop else ()
    return {key: node for key, node in nodes.items() if key not in unused}


def default_run(path: Path, recipe: Node) -> Path:
    """outputs/<method>-<recipe>-<key>."""
    return Path("outputs") / f"{path.resolve().parent.name}-{path.stem}-{recipe_key(recipe)}"
