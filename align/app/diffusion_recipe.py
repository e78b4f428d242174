"""The recipe of a diffusion model: read from a file and overrides, checked, and written back."""

# The stubs of PyYAML leave out most types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from align.diffusion.objectives import AnyDiffusionObjective
from align.diffusion.settings import (
    SHAPES,
    DiffusionData,
    DiffusionEvaluate,
    DiffusionModel,
    DiffusionTrain,
)
from align.errors import RecipeError
from align.node import Conflict, KeyPath, Node
from align.recipe.reading import Draft, apply_override, position_of, read_draft
from align.recipe.schemas import description_of
from align.recipe.sections import Hub
from align.recipe.suggestions import did_you_mean
from align.recipe.yaml_rules import Dumper, as_yaml

OBJECTIVES: dict[str, type[BaseModel]] = {
    member.model_fields["name"].default: member
    for member in get_args(get_args(AnyDiffusionObjective)[0])
}


class DiffusionRecipe(Node):
    """One training run of a diffusion model, complete."""

    model: DiffusionModel
    """The text-to-image model that is trained."""
    data: DiffusionData
    """The records."""
    objective: AnyDiffusionObjective
    """The formula and its hyper-parameters: seppo, diffusion_dpo or diffusion_sft."""
    train: DiffusionTrain = DiffusionTrain()
    """How it is trained."""
    evaluate: DiffusionEvaluate = DiffusionEvaluate()
    """What is measured before and after."""
    hub: Hub = Hub()
    """Where the model is pushed."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.model.is_world != (self.data.records == SHAPES):
            yield (
                "data.records",
                f"{SHAPES} has its own model and images; write it under model and data, or under "
                "neither",
            )
        if "shapes" in self.evaluate.suite and not self.model.is_world:
            yield "evaluate.suite", f"shapes measures {SHAPES} alone; take it out"
        if self.model.is_world and self.train.sampler.guidance_scale != 1:
            yield (
                "train.sampler.guidance_scale",
                f"{SHAPES} was trained with captions throughout; write 1",
            )
        if self.model.dtype != "float32" and not self.train.bf16:
            yield "train.bf16", f"the frozen weights are {self.model.dtype}; write `bf16: true`"
        if not self.data.held_out and "denoising" in self.evaluate.suite:
            yield "data.held_out", "denoising is measured on held-out records; write a number"


def trains_diffusion(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe trains a diffusion model: its objective is one of those.

    Raises:
        RecipeError: it cannot be read as one YAML mapping.
    """
    node = _draft(path, overrides).values.get("objective")
    return isinstance(node, dict) and cast("Any", node).get("name") in OBJECTIVES


def load_diffusion_recipe(path: str | Path, overrides: Sequence[str] = ()) -> DiffusionRecipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: `key.path=value` with the value in YAML; a later one wins. Another
            `objective.name` drops the fields in the file that the new formula does not have.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    draft = _draft(path, overrides)
    recipe: DiffusionRecipe | None = None
    try:
        # As JSON: there strict means no conversions, yet lists make tuples.
        recipe = DiffusionRecipe.model_validate_json(json.dumps(draft.values), strict=True)
    except ValidationError as error:
        for fault in error.errors():
            _tell(draft, cast("Mapping[str, Any]", fault))
    if draft.problems:
        problems = [str(problem) for problem in sorted(draft.problems, key=position_of)]
        heading = f"{draft.file}: {len(problems)} problems\n" if len(problems) > 1 else ""
        raise RecipeError(heading + "\n".join(problems))
    assert recipe is not None
    return recipe


def diffusion_yaml(recipe: DiffusionRecipe) -> str:
    """Every key of the recipe with its value; loading it gives an equal recipe."""
    nodes = recipe.model_dump(mode="json")
    return yaml.dump(nodes, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def diffusion_key(recipe: DiffusionRecipe) -> str:
    """10 hex digits that name what the recipe trains; where it is pushed has no part."""
    nodes = {k: node for k, node in recipe.model_dump(mode="json").items() if k != "hub"}
    text = json.dumps(nodes, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def default_diffusion_run(path: Path, recipe: DiffusionRecipe) -> Path:
    """outputs/<method>-<recipe>-<key>."""
    return Path("outputs") / f"{path.resolve().parent.name}-{path.stem}-{diffusion_key(recipe)}"


def _draft(path: str | Path, overrides: Sequence[str]) -> Draft:
    draft = read_draft(Path(path))
    for override in overrides:
        if override.startswith("objective.name="):
            _drop_old_formula(draft, override.partition("=")[2].strip())
        apply_override(draft, override)
    return draft


def _drop_old_formula(draft: Draft, name: str) -> None:
    node = draft.values.get("objective")
    if isinstance(node, dict) and name in OBJECTIVES:
        objective = cast("dict[str, Any]", node)
        for key in [key for key in objective if key not in OBJECTIVES[name].model_fields]:
            del objective[key]


def _tell(draft: Draft, fault: Mapping[str, Any]) -> None:
    # pydantic puts the union's member into the location.
    path: KeyPath = tuple(str(part) for part in fault["loc"])
    if path[:1] == ("objective",) and len(path) > 1 and path[1] in OBJECTIVES:
        path = ("objective", *path[2:])
    kind = fault["type"]
    if kind == "conflict":
        for key, text in cast("list[Conflict]", fault["ctx"]["conflicts"]):
            draft.add((*path, *key.split(".")), text)
        return
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        names = ", ".join(OBJECTIVES)
        draft.add((*path, "name"), f"is missing, or no objective; there are {names}")
        return
    owner, key = _owner(draft, path), "".join(path[-1:])
    known = [] if owner is None else list(owner.model_fields)
    if kind == "extra_forbidden":
        near = did_you_mean(key, known, "".join(f"{part}." for part in path[:-1]))
        draft.add(path, f"no such key{near or '; there are ' + ', '.join(known)}")
    elif kind == "missing":
        draft.add(path, "is missing")
    else:
        said = f" ({description_of(owner, key)})" if owner and key in known else ""
        draft.add(path, f"found {as_yaml(fault['input'])}: {fault['msg']}{said}")


def _owner(draft: Draft, path: KeyPath) -> type[BaseModel] | None:
    """The section whose key stands at the end of a path."""
    model: Any = DiffusionRecipe
    for part in path[:-1]:
        if part == "objective":
            node = cast("dict[str, Any]", draft.values["objective"])
            model = OBJECTIVES.get(str(node.get("name")))
        elif model is not None and part in model.model_fields:
            annotation: Any = model.model_fields[part].annotation
            is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
            model = cast("Any", annotation) if is_section else None
    return model
