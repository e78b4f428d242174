"""What everything that a recipe writes is made of: a frozen value with checked keys.

A section of a recipe is a node, and so are the settings of a stage, a judge, an evaluation: the
YAML mapping *is* the value. A node that starts something stands in the file of that something and
has one method that makes it; `align.registry` finds nodes by name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

KeyPath: TypeAlias = tuple[str, ...]
Conflict: TypeAlias = tuple[str, str]  # key inside the node, what is wrong and how to go on


class Node(BaseModel):
    """A mapping of a recipe: frozen, without unknown keys, without nan or inf."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    code: ClassVar[str | None] = None
    """Sha256 of the source, where the node is a user's own; None for built-in ones."""
    chosen_by: ClassVar[str] = "by"
    """The key whose word `class_for` reads."""

    def conflicts(self) -> Iterator[Conflict]:
        """Keys that are fine each by itself and cannot stand together."""
        yield from ()

    @classmethod
    def class_for(cls, written: Mapping[str, Any]) -> type[Node]:
        """The class for what was written: this one, or one with the keys that a key of it brings.

        `{run: judge, by: llm, server: ...}` is a judge stage with the keys of the judge called llm.
        """
        return cls

    @classmethod
    def classes(cls) -> Mapping[str, type[Node]]:
        """What `class_for` chooses among, by the word that chooses."""
        return {}

    @classmethod
    def of(cls, **written: Any) -> Self:
        """A value of the class for what is written: in Python what the mapping is in a recipe.

        Raises:
            ValidationError: a key does not fit.
        """
        found: Any = cls.class_for(written)
        return found(**written)

    @model_validator(mode="after")
    def _consistent(self) -> Node:
        conflicts = list(self.conflicts())
        if conflicts:
            text = " ".join(f"{key}: {problem}." for key, problem in conflicts)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": conflicts})
        return self


@functools.cache
def joined(first: type[Node], second: type[Node]) -> type[Node]:
    """`first` with the keys and methods of `second` beside its own; those win where both have one.

    Their `conflicts` must hand on to `super()`.
    """

    def reduced(self: Node) -> tuple[Any, ...]:
        return built, (first, self.model_dump(mode="json"))

    about: dict[str, Any] = {
        "__module__": first.__module__,
        "__doc__": first.__doc__,
        "code": second.code,
        # A class made here cannot be found by its name: its values travel as what was written.
        "__reduce__": reduced,
    }
    metaclass: Any = type(first)
    return metaclass(first.__name__, (second, first), about)


def built(node: type[Node], written: Mapping[str, Any]) -> Node:
    """The value of a node's class for plain values, as a recipe holds them.

    Raises:
        ValidationError: they do not fit.
    """
    # As JSON: there strict means no conversions, yet lists make tuples.
    return node.class_for(written).model_validate_json(json.dumps(written), strict=True)


def own_code(value: Any) -> dict[str, str]:
    """Name -> source hash of every node of a user's own within a node; for keys of stages."""
    found: dict[str, str] = {}
    if isinstance(value, Node):
        if value.code is not None:
            found[type(value).__name__] = value.code
        for name in type(value).model_fields:
            found |= own_code(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():  # pyright: ignore[reportUnknownVariableType]
            found |= own_code(inner)
    elif isinstance(value, tuple | list):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            found |= own_code(inner)
    return found
