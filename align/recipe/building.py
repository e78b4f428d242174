"""From what was written to the typed recipe, with every problem in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from align import registry
from align.built_in import Kind
from align.errors import RecipeError
from align.nearest import did_you_mean
from align.node import Conflict, KeyPath, Node
from align.recipe.data_recipe import DATA_SECTIONS, DataRecipe
from align.recipe.eval_recipe import EVAL_PLAIN, EVAL_SECTIONS, EvalRecipe
from align.recipe.kinds import KindRecipe
from align.recipe.reading import UNREADABLE, Draft
from align.recipe.schemas import (
    LISTS,
    SUITE,
    TERMS,
    choices_of,
    expected_in_words,
    model_at,
    schema_at,
    schema_of,
)
from align.recipe.sections import SECTIONS, Recipe
from align.recipe.suggestions import unknown_key
from align.recipe.yaml_rules import TAG, as_yaml, plain_tag


def build(draft: Draft) -> Recipe | None:
    """The recipe, where every section is right; else what is wrong goes into the draft."""
    optional = ("prompts",)
    parts = _built_sections(draft, SECTIONS, _needed(draft), optional, [*Recipe.model_fields])
    stages = _built_list(draft, "each_round")
    rounds = _rounds(draft)
    if parts is None or stages is None or rounds == 0:
        return None
    return _whole(draft, Recipe, {**parts, "rounds": rounds, "each_round": stages})


def build_data(draft: Draft) -> DataRecipe | None:
    """The recipe of a data set, where every section is right; else the draft says what is wrong."""
    for key in ("objective", "train", "roles", "rounds", "each_round", "evaluate", "keep"):
        if draft.values.pop(key, None) is not None:
            draft.add((key,), "a recipe with `build` trains nothing; take one of the two out")
    keys = [*DataRecipe.model_fields]
    parts = _built_sections(draft, DATA_SECTIONS, ("model",), ("prompts",), keys)
    stages = _built_list(draft, "build")
    seed = draft.values.get("seed", 0)
    if type(seed) is not int or seed < 0:
        draft.add(("seed",), f"found {as_yaml(seed)}; write an integer >= 0")
        return None
    if parts is None or stages is None:
        return None
    return _whole(draft, DataRecipe, {**parts, "seed": seed, "build": stages})


def build_eval(draft: Draft) -> EvalRecipe | None:
    """The recipe of evaluations, where all of it is right; else the draft says what is wrong."""
    for key in ("train", "roles", "data", "prompts", "each_round", "build", "keep"):
        if draft.values.pop(key, None) is not None:
            draft.add((key,), "a recipe of evaluations alone does not read it; take it out")
    keys = [*EvalRecipe.model_fields]
    parts = _built_sections(draft, EVAL_SECTIONS, ("model",), ("server",), keys)
    if parts is None:
        return None
    plain = {key: draft.values[key] for key in EVAL_PLAIN if key in draft.values}
    return _whole(draft, EvalRecipe, {**parts, **plain})


def build_kind(draft: Draft, root: type[KindRecipe]) -> KindRecipe | None:
    """The recipe of one of the kinds, where all of it is right; else the draft says what is not."""
    draft.root = root
    for key, why in root.refused.items():
        if draft.values.pop(key, None) is not None:
            draft.add((key,), f"has no place in `kind: {draft.values['kind']}`: {why}")
    sections = [name for name in root.model_fields if name != "kind"]
    parts = _built_sections(draft, sections, ("model", "data"), (), [*root.model_fields])
    return None if parts is None else _whole(draft, root, parts)


R = TypeVar("R", bound=BaseModel)


def _whole(draft: Draft, root: type[R], parts: dict[str, Any]) -> R | None:
    try:
        return root(**parts)
    except ValidationError as error:
        for fault in error.errors():
            if fault["type"] != "conflict":
                _tell(draft, (str(fault["loc"][0]),), cast("Mapping[str, Any]", fault), None)
                continue
            for key, text in cast("list[Conflict]", fault["ctx"]["conflicts"]):  # type: ignore[typeddict-item]
                draft.add(tuple(key.split(".")), text)
        return None


def _built_sections(
    draft: Draft,
    sections: Sequence[str],
    needed: Sequence[str],
    optional: Sequence[str],
    keys: Sequence[str],
) -> dict[str, Any] | None:
    """The sections, or None where one is wrong."""
    for key in draft.values:
        if key not in keys:
            draft.add((key,), unknown_key((key,), None, draft.root))
    parts: dict[str, Any] = {}
    complete = True
    for section in sections:
        node = draft.values.get(section)
        if node is None and section in optional:
            continue
        if node is None and section in needed:
            draft.add((section,), f"is missing; write {_EXAMPLES[section]}")
        elif node is not None and not isinstance(node, dict):
            found = as_yaml(node)
            draft.add((section,), f"found {found}, expected a mapping; write its keys below it")
        elif section == "objective":
            parts[section] = _built_objective(draft, cast("dict[str, Any]", node))
        elif section == "evaluate":
            parts[section] = _built_evaluate(draft, cast("dict[str, Any]", node or {}))
        else:
            model = model_at((section,), None, draft.root)
            assert model is not None
            parts[section] = _built(draft, (section,), model, cast("dict[str, Any]", node or {}))
        complete = complete and parts.get(section) is not None
    return parts if complete else None


def _needed(draft: Draft) -> tuple[str, ...]:
    is_loop = draft.values.get("rounds") is not None
    return ("model", "objective") if is_loop else ("model", "data", "objective")


def _rounds(draft: Draft) -> int | None:
    """The number of rounds; 0 where something else stands there."""
    value = draft.values.get("rounds")
    if value is None or (type(value) is int and value >= 1):
        return value
    if value != UNREADABLE:
        draft.add(("rounds",), f"found {as_yaml(value)}; write an integer >= 1")
    return 0


def _built_list(draft: Draft, key: str) -> tuple[BaseModel, ...] | None:
    node = draft.values.get(key)
    if node is None:
        return ()
    if not isinstance(node, list):
        found = as_yaml(node)
        draft.add((key,), f"found {found}; write a list, `- {{run: {next(iter(LISTS[key]))}}}`")
        return None
    items = enumerate(cast("list[Any]", node))
    built = [_built_item(draft, (key, str(i)), LISTS[key], item) for i, item in items]
    return None if None in built else tuple(stage for stage in built if stage is not None)


def _built_item(draft: Draft, path: KeyPath, kind: Kind, node: Any) -> BaseModel | None:
    """An item of a list of nodes, of the class that its `run` names."""
    written = cast("dict[str, Any]", node) if isinstance(node, dict) else {}
    name = written.get("run")
    if name is None:
        first = next(iter(registry.names(kind)))
        text = f"is no {kind}: found {as_yaml(node)}; write `- {{run: {first}}}`, with its keys"
        draft.add(path, text)
        return None
    if name == UNREADABLE:
        return None
    found = _class_of(draft, (*path, "run"), kind, name, written)
    return found and _built(draft, path, found, written)


def _built_evaluate(draft: Draft, node: dict[str, Any]) -> BaseModel | None:
    """The section; what is wrong with a node of its suite is told by that node's class."""
    model = model_at(SUITE[:1], None, draft.root)
    assert model is not None
    suite: Any = node.get(SUITE[1])
    items = enumerate(cast("list[Any]", suite) if isinstance(suite, list) else ())
    nodes = [
        _built_item(draft, (*SUITE, str(i)), "evaluation", item)
        for i, item in items
        if isinstance(item, dict)
    ]
    if None not in nodes:
        return _built(draft, SUITE[:1], model, node)
    _built(draft, SUITE[:1], model, {key: node[key] for key in node if key != SUITE[1]})
    return None


def _class_of(
    draft: Draft, path: KeyPath, kind: Kind, name: Any, node: Mapping[str, Any]
) -> type[BaseModel] | None:
    """The class whose keys stand beside a name; None where nothing has the name."""
    try:
        found = registry.node(kind, str(name))
    except RecipeError as error:
        draft.add(path, str(error))
        return None
    if not issubclass(found, Node):
        return found
    try:
        # A key within may name more code, whose keys stand beside it too.
        return found.class_for(node)
    except RecipeError as error:
        draft.add((*path[:-1], found.chosen_by), str(error))
        return None


_EXAMPLES = {
    "model": "`model: {model_name_or_path: <folder or Hub id>}`",
    "data": "`data: {pairs: <file or Hub id>}`",
    "objective": "`objective: {name: dpo, beta: 0.1}`",
}


def _built_objective(
    draft: Draft, node: dict[str, Any], path: KeyPath = ("objective",)
) -> BaseModel | None:
    name = node.get("name")
    if name is None:
        draft.add(path, f"`name` is missing; write {_EXAMPLES['objective']}")
        return None
    if name == UNREADABLE:
        return None
    model = _class_of(draft, (*path, "name"), "objective", name, node)
    if model is None:
        return None
    # Objective refuses a boolean for the section as a whole, which would hide its other faults.
    rest = dict[str, Any]()
    for key, value in node.items():
        schema = schema_of(model)["properties"].get(key, {})
        if isinstance(value, bool) and schema.get("type") == "number":
            fault = {"input": value, "type": "float_type"}
            _tell(draft, (*path, key), fault, model)
        else:
            rest[key] = value
    is_whole = len(rest) == len(node)
    if TERMS in model.model_fields and isinstance(node.get(TERMS), list):
        rest[TERMS], terms_are_right = _checked_terms(draft, (*path, TERMS), node[TERMS])
        is_whole = is_whole and terms_are_right
    built = _built(draft, path, model, rest)
    return built if is_whole else None


def _checked_terms(draft: Draft, path: KeyPath, terms: list[Any]) -> tuple[list[Any], bool]:
    """The terms of a sum, and whether the objective of each is right.

    Each is told by its own class. A wrong one gives way to a right one, so that what else is wrong
    with the sum can be found.
    """
    found: list[Any] = []
    are_right = True
    for i, term in enumerate(terms):
        objective: Any = (
            cast("dict[str, Any]", term).get("objective") if isinstance(term, dict) else None
        )
        if isinstance(objective, dict):
            inner = cast("dict[str, Any]", objective)
            if _built_objective(draft, inner, (*path, str(i), "objective")) is None:
                are_right = False
                found.append(term | {"objective": {"name": "dpo"}})
                continue
        found.append(term)
    return found, are_right


def _built(
    draft: Draft, path: KeyPath, model: type[BaseModel], node: dict[str, Any]
) -> BaseModel | None:
    """One section, validated as JSON: there strict means no conversions, yet lists make tuples."""
    try:
        return model.model_validate_json(json.dumps(node), strict=True)
    except ValidationError as error:
        is_named = path[0] == "objective" or path[0] in LISTS or path[:2] == SUITE
        found = model if is_named else None
        told: set[KeyPath] = set()
        for fault in error.errors():
            if fault["type"] == "conflict":
                within = _written_part(fault["loc"], node, missing=False)
                for key, text in cast("list[Conflict]", fault.get("ctx", {})["conflicts"]):
                    draft.add((*path, *within, *key.split(".")), text)
                continue
            key = (*path, *_written_part(fault["loc"], node, fault["type"] == "missing"))
            # Entries that are wrong are also missing in their list.
            if fault["type"] == "too_short" and any(one[: len(key)] == key for one in told):
                continue
            # A union reports a fault per member, all at one key or below it.
            if not any(key[:end] in told for end in range(len(path) + 1, len(key) + 1)):
                told.add(key)
                _tell(draft, key, cast("Mapping[str, Any]", fault), found)
        return None


def _written_part(loc: tuple[int | str, ...], node: Any, missing: bool) -> KeyPath:
    """The part of pydantic's location that stands in the recipe; the rest names union members."""
    path: list[str] = []
    for part in loc:
        if isinstance(part, int) and isinstance(node, list) and part < len(cast("list[Any]", node)):
            node = cast("list[Any]", node)[part]
        elif isinstance(node, dict) and part in node:
            node = cast("dict[Any, Any]", node)[part]
        elif not (missing and part == loc[-1]):
            continue
        path.append(str(part))
    return tuple(path)


def _tell(
    draft: Draft, path: KeyPath, fault: Mapping[str, Any], found: type[BaseModel] | None
) -> None:
    value, kind = fault["input"], fault["type"]
    if kind == "default_factory_not_called" or value == UNREADABLE:
        return
    if kind == "extra_forbidden":
        draft.add(path, unknown_key(path, found, draft.root))
        return
    if kind in ("unnamed", "unknown_name"):
        draft.add(path, str(fault["msg"]))
        return
    schema = schema_at(path, found, draft.root)
    expected = expected_in_words(schema) if schema is not None else "another value"
    if kind == "missing":
        draft.add(path, f"is missing; write {expected}")
        return
    if kind == "value_error":
        draft.add(path, f"found {as_yaml(value)}: {_sentence(str(fault['msg']))}; write {expected}")
        return
    hint = ""
    if isinstance(value, str) and schema is not None:
        choices = choices_of(schema)
        boolean = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
        if choices:
            hint = did_you_mean(value, choices)
        elif boolean is not None and "true or false" in expected:
            hint = f"; write `{path[-1]}: {boolean}`"
        elif plain_tag(value) != f"{TAG}str":
            hint = f"; write {value} without quotes"
        elif re.fullmatch(r"0[0-9]+", value):
            hint = f"; write {value.lstrip('0') or '0'}"
    elif isinstance(value, float) and value.is_integer() and "an integer" in expected:
        hint = f"; write {int(value)}"
    draft.add(
        path,
        f"found {as_yaml(value)}, expected {expected}{hint}{_for_example(path, schema, hint)}",
    )


def _for_example(path: KeyPath, schema: Mapping[str, Any] | None, hint: str) -> str:
    default = (schema or {}).get("default")
    if hint or default is None or path[-1].isdigit():
        return ""
    return f"; write for example `{path[-1]}: {as_yaml(default)}`"


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".")
