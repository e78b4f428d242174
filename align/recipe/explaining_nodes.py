"""What the keys of a node mean: of a stage, judge or evaluation, and of what lies within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from align import registry
from align.built_in import Kind
from align.errors import RecipeError
from align.judges.by import judge_class
from align.nearest import did_you_mean
from align.recipe.schemas import (
    description_of,
    expected_in_words,
    model_within,
    ordered_fields,
    schema_of,
)
from align.recipe.yaml_rules import as_yaml


def explain_entry(key: str, kind: Kind, rest: Sequence[str]) -> str:
    """An entry of a list by its name, a key of it, or a key of what lies within.

    Args:
        key: as it was asked, for the answer.
        kind: of the entry.
        rest: its name and what follows: `judge`, `judge.ask`, `judge.llm.how.criterion`,
            `judge.by.llm`, `select.tournament.min_margin`.

    Raises:
        RecipeError: nothing has the name, or it has no such key.
    """
    name, *inner = rest
    found = judge_class(name) if kind in ("judge", "reward") else registry.node(kind, name)
    return _explain_in(key, found, inner)


def _explain_in(key: str, found: type[BaseModel], rest: Sequence[str]) -> str:
    outer: Any = found
    chosen_by: str = getattr(outer, "chosen_by", "")
    if len(rest) > 1 and rest[0] == chosen_by:
        rest = rest[1:]
    words: Mapping[str, type[BaseModel]] = outer.classes() if hasattr(outer, "classes") else {}
    if rest and rest[0] not in found.model_fields:
        is_own = registry.is_path(rest[0]) or rest[0] in registry.names("reward")
        if rest[0] in words:
            found, rest = words[rest[0]], rest[1:]
        elif words and chosen_by == "by" and is_own:
            found, rest = judge_class(rest[0]), rest[1:]
    if not rest:
        return "\n".join(_described(key, found, words if found is outer else {}))
    if rest[0] not in found.model_fields and rest[0] in outer.model_fields:
        found = outer
    if rest[0] not in found.model_fields:
        known = [*found.model_fields, *(words if found is outer else ())]
        near = did_you_mean(rest[0], known)
        raise RecipeError(f"{key}: no such key{near}; it has {', '.join(known)}")
    within = model_within(found.model_fields[rest[0]].annotation)
    if len(rest) > 1:
        if within is None:
            raise RecipeError(f"{key}: {rest[0]} has no keys of its own; ask for {rest[0]} alone")
        return _explain_in(key, within, rest[1:])
    lines = explained(key, found, rest[0])
    if within is not None:
        lines += _described(key, within, {})[1:]
    return "\n".join(lines)


def _described(key: str, found: type[BaseModel], words: Mapping[str, type[BaseModel]]) -> list[str]:
    lines = [f"{key}: {first_line(found)}"]
    lines += [f"  {name}: {description_of(found, name)}" for name in ordered_fields(found)]
    if words:
        by: str = getattr(found, "chosen_by", "by")
        lines.append(f"  and the keys of {by}, one of {', '.join(words)}")
    return lines


def first_line(found: type[BaseModel]) -> str:
    """What a node is, in the first line of its docstring."""
    return (found.__doc__ or found.__name__).strip().splitlines()[0]


def explained(key: str, model: type[BaseModel], name: str) -> list[str]:
    """What a key means, what it takes, and its default; a line each."""
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
