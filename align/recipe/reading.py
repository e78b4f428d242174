"""A recipe as it was written: plain values, where each came from, what is wrong so far."""

# The stubs of PyYAML leave out most types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from align import registry
from align.errors import RecipeError
from align.node import KeyPath, Node
from align.recipe.yaml_rules import TAG, compose


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe."""

    where: str
    """`file:line`, or the override that says it."""
    key: str
    """Dotted path; empty for the file as a whole."""
    text: str
    """What was found and how to go on."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


def position_of(problem: Problem) -> tuple[bool, int]:
    """Order of problems: down the file, then the overrides."""
    line = problem.where.rpartition(":")[2]
    return problem.where.startswith("override"), int(line) if line.isdigit() else 0


@dataclass
class Draft:
    """A recipe as it was written: plain values, where each came from, what is wrong so far."""

    file: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    origins: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])
    root: type[Node] | None = None
    """The recipe's class, where its sections have keys of their own."""
    problems: list[Problem] = field(default_factory=list[Problem])
    notices: list[str] = field(default_factory=list[str])

    def where(self, path: KeyPath) -> str:
        """Where the nearest enclosing key of a path stands."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, f"{self.file}:1")

    def add(self, path: KeyPath, text: str) -> None:
        """Notes what is wrong with a key, where it stands."""
        self.problems.append(Problem(self.where(path), ".".join(path), text))


def read_draft(path: Path) -> Draft:
    """The file as plain values.

    Raises:
        RecipeError: it cannot be read as one YAML mapping.
    """
    draft = Draft(file=str(path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); name a recipe, such as "
            "recipes/dpo/tiny.yaml"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None
    node = compose(text, draft.file)
    if node is None:
        raise RecipeError(f"{path}:1: the recipe is empty; it needs model, data and objective")
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(
            f"{path}:{node.start_mark.line + 1}: a recipe is a mapping of sections; write "
            "`model:`, `data:`, `objective:`, each with its keys below"
        )
    draft.values = cast("dict[str, Any]", _plain_value(node, (), draft, None))
    return draft


def _plain_value(node: yaml.Node, path: KeyPath, draft: Draft, override: str | None) -> Any:
    """A node as plain Python values; notes where every key stands and what cannot be read."""
    draft.origins[path] = override or f"{draft.file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            where = override or f"{draft.file}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.startswith(TAG):
                draft.problems.append(
                    Problem(where, ".".join(path), "a key is not a plain word; write `key: value`")
                )
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in mapping:
                first = draft.where(inner)
                draft.problems.append(
                    Problem(
                        where,
                        ".".join(inner),
                        f"given twice (first at {first}); keep one of the two",
                    )
                )
                continue
            value = _plain_value(value_node, inner, draft, override)
            draft.origins[inner] = where
            mapping[key] = value
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
        nodes = cast("list[yaml.Node]", node.value)
        return [_plain_value(n, (*path, str(i)), draft, override) for i, n in enumerate(nodes)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, draft)
    draft.add(path, f"the tag {_short_tag(node)} is not read in recipes; write plain YAML")
    return UNREADABLE


# Stands where a value could not be read and the reason is already said.
UNREADABLE = "\0unreadable"


def _scalar(node: yaml.ScalarNode, path: KeyPath, draft: Draft) -> Any:
    text = str(node.value)
    try:
        match node.tag.removeprefix(TAG):
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text.replace("_", ""), 16 if "0x" in text else 10)
            case "float":
                return float(re.sub(r"_|(?<=[-+])\.(?=[iI])|^\.(?=[nNiI])", "", text))
            case "str":
                return text
            case _:
                draft.add(
                    path, f"the tag {_short_tag(node)} is not read in recipes; write plain YAML"
                )
    except (ValueError, KeyError):
        draft.add(
            path, f"{text!r} is no {_short_tag(node).lstrip('!')}; write the value without a tag"
        )
    return UNREADABLE


def _short_tag(node: yaml.Node) -> str:
    return str(node.tag).replace(TAG, "!!")


def apply_override(draft: Draft, override: str) -> None:
    """Puts `key.path=value` into the draft, or notes why it cannot stand there."""
    key, equals, text = override.partition("=")
    is_secret = key.lower().endswith(("token", "key", "secret", "password"))
    source = f"override {key + '=...' if is_secret else override!r}"
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        draft.problems.append(
            Problem(
                source,
                "",
                "no key with a value; write `key.path=value`, such as `train.learning_rate=1e-6`",
            )
        )
        return
    try:
        node = compose(text, source)
    except RecipeError as error:
        draft.problems.append(Problem(str(error), "", ""))
        return
    if path == ("objective", "name"):
        _drop_old_formula(draft, text.strip())
    parent = draft.values
    for depth, part in enumerate(path[:-1], start=1):
        inner: Any = {} if parent.get(part) is None else parent[part]
        if isinstance(inner, list):
            # An item of a list is addressed by its number, as in each_round.0.samples.
            items = cast("list[Any]", inner)
            inner = {str(i): item for i, item in enumerate(items)}
            if depth < len(path) - 1 and isinstance(inner.get(path[depth]), dict):
                parent = cast("dict[str, Any]", inner)
                continue
        if isinstance(inner, dict):
            if part not in parent:
                draft.origins[path[:depth]] = source
            parent[part] = inner
            parent = cast("dict[str, Any]", inner)
        else:
            outer = ".".join(path[:depth])
            draft.problems.append(
                Problem(source, key, f"{outer} is one value, without keys; write `{outer}=...`")
            )
            return
    for known in [known for known in draft.origins if known[: len(path)] == path]:
        del draft.origins[known]
    # What was wrong with the value in the file no longer matters, except that a key stood twice.
    draft.problems = [
        p
        for p in draft.problems
        if p.key != key or p.where.startswith("override") or "twice" in p.text
    ]
    parent[path[-1]] = None if node is None else _plain_value(node, path, draft, source)
    draft.origins[path] = source


def _drop_old_formula(draft: Draft, name: str) -> None:
    """Take out the file's fields of another formula that the new one does not have."""
    node = draft.values.get("objective")
    if not isinstance(node, dict) or name not in registry.names("objective"):
        return
    objective = cast("dict[str, Any]", node)
    fields = registry.node("objective", name).model_fields
    for key in [key for key in objective if key not in fields]:
        if not draft.where(("objective", key)).startswith("override"):
            draft.notices.append(
                f"objective.{key}: left out; {name}, which an override names, has no such field"
            )
            del objective[key]
