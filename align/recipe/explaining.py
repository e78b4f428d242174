"""What a key of the recipe means, for `align recipe explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from align import registry
from align.built_in import Kind
from align.errors import RecipeError
from align.nearest import did_you_mean
from align.node import KeyPath, Node
from align.recipe.data_recipe import DataRecipe
from align.recipe.eval_recipe import EvalRecipe
from align.recipe.refused import REFUSED
from align.recipe.schemas import (
    LISTS,
    description_of,
    expected_in_words,
    model_at,
    objectives,
    ordered_fields,
    schema_of,
)
from align.recipe.sections import Recipe
from align.recipe.suggestions import nearest_key
from align.recipe.yaml_rules import as_yaml

OTHERS: dict[type[Node], str] = {DataRecipe: "align data build", EvalRecipe: "align eval"}


def explain(key: str = "") -> str:
    """What a key of the recipe means: its values, its default, its section's keys.

    Args:
        key: dotted path such as `train.learning_rate`; a section; `each_round.generate` or
            `evaluate.suite.tasks` for an entry of a list; empty for all sections.

    Raises:
        RecipeError: no such key, with the nearest right one.
    """
    path = tuple(part for part in key.split(".") if part)
    if not path:
        lines = [f"{name}: {description_of(Recipe, name)}" for name in Recipe.model_fields]
        lines += [
            f"{name} (of a recipe for `{command}`): {description_of(root, name)}"
            for root, command in OTHERS.items()
            for name in root.model_fields
            if name not in Recipe.model_fields
        ]
        return "\n".join(lines)
    refused = REFUSED.get(".".join(path[:-1]), {}).get(path[-1])
    if refused is not None:
        return f"{key}: not a key of a recipe; {refused}"
    if path[0] == "objective":
        return _explain_objective(key, path)
    if (kind := _listed(path)) is not None:
        return _explain_listed(key, kind, [*path[1:]] if path[0] in LISTS else [*path[2:]])
    others = [root for root in OTHERS if path[0] in root.model_fields]
    is_of_others = len(path) == 1 and path[0] not in Recipe.model_fields and others
    model = others[0] if is_of_others else model_at(path[:-1], None)
    if model is None or path[-1] not in model.model_fields:
        suggestion = nearest_key(path, None)
        raise RecipeError(f"{key}: no such key{suggestion}")
    inner = model_at(path, None)
    if inner is not None:
        lines = [
            f"{key}: {description_of(model, path[-1])}",
            *(f"  {name}: {description_of(inner, name)}" for name in ordered_fields(inner)),
        ]
        return "\n".join(lines)
    return "\n".join(_explained(key, model, path[-1]))


def _listed(path: KeyPath) -> Kind | None:
    """What stands in the list that a key leads into; None where it leads into none."""
    if path[:2] == ("evaluate", "suite"):
        return "evaluation" if len(path) > 2 else None
    return LISTS.get(path[0]) if len(path) > 1 else None


def _explain_listed(key: str, kind: Kind, rest: list[str]) -> str:
    """`each_round.judge`, `each_round.judge.ask`; of a judge, `each_round.judge.llm.how`.

    Raises:
        RecipeError: nothing has the name, or it has no such key.
    """
    found: Any = registry.node(kind, rest.pop(0))
    words: Mapping[str, type[BaseModel]] = found.classes()
    if rest and rest[0] in words:
        found = words[rest.pop(0)]
    if not rest:
        lines = [f"{key}: {(found.__doc__ or '').strip().splitlines()[0]}"]
        lines += [f"  {name}: {description_of(found, name)}" for name in ordered_fields(found)]
        if words and found.classes():
            lines.append(f"  and the keys of {found.chosen_by}, one of {', '.join(words)}")
        return "\n".join(lines)
    if len(rest) > 1 or rest[0] not in found.model_fields:
        known = list(found.model_fields)
        raise RecipeError(
            f"{key}: no such key{did_you_mean(rest[0], known)}; it has {', '.join(known)}"
        )
    return "\n".join(_explained(key, found, rest[0]))


def _explain_objective(key: str, path: KeyPath) -> str:
    if len(path) == 1:
        lines = [f"{key}: {description_of(Recipe, 'objective')}"]
        for name, model in objectives().items():
            fields = ", ".join(field for field in model.model_fields if field != "name")
            lines.append(f"  {name}({fields}): {(model.__doc__ or '').strip().splitlines()[0]}")
        return "\n".join(lines)
    if len(path) == 2 and path[-1] in objectives():
        model = objectives()[path[-1]]
        lines = [f"objective {{name: {path[-1]}}}: {(model.__doc__ or '').strip()}"]
        for name in model.model_fields:
            if name != "name":
                lines += _explained(f"objective.{name}", model, name)
        return "\n".join(lines)
    field_name = path[-1]
    having = {name: m for name, m in objectives().items() if field_name in m.model_fields}
    if len(path) > 2 or not having:
        known = sorted({field for model in objectives().values() for field in model.model_fields})
        raise RecipeError(f"{key}: no such key{did_you_mean(field_name, known, 'objective.')}")
    if field_name == "name":
        return f"{key}: the formula\n  one of {', '.join(sorted(objectives()))}\n  must be given"
    lines: list[str] = []
    for name, model in having.items():
        lines += _explained(f"objective.{field_name} of {name}", model, field_name)
    return "\n".join(lines)


def _explained(key: str, model: type[BaseModel], name: str) -> list[str]:
    schema = schema_of(model)["properties"][name]
    definition = model.model_fields[name]
    if definition.is_required():
        default = "must be given"
    elif "default" in schema:
        default = f"default: {as_yaml(schema['default'])}"
    else:
        default = "default: depends on other keys"
    return [
        f"{key}: {description_of(model, name)}",
        f"  {expected_in_words(schema)}",
        f"  {default}",
    ]
