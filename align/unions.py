"""Unions of nodes that anybody may join: their members are looked up when a value is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from align import registry
from align.built_in import Kind
from align.errors import RecipeError
from align.node import Node, built


@dataclass(frozen=True)
class Named:
    """`Annotated[StageNode, Named("stage")]`: a value of the class that its own tag names.

    The union is open: it is looked up when a value is read, so what a package or a file adds is a
    member of it.
    """

    kind: Kind

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Reads mappings by their tag; values pass; each is written by its own class."""
        return core_schema.no_info_plain_validator_function(
            self._read,
            serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A mapping; which keys it has depends on its tag."""
        return {"type": "object"}

    def _read(self, value: Any) -> BaseModel:
        if isinstance(value, BaseModel):
            return value
        tag = registry.TAGS[self.kind]
        written: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType]
        name = written.get(tag)
        if not isinstance(name, str):
            text = f"expected a mapping with `{tag}`, the name of a {self.kind}"
            raise PydanticCustomError("unnamed", "{text}", {"text": text})
        return value_of(registry.node(self.kind, name), written)


@dataclass(frozen=True)
class Open:
    """`Annotated[Rewards, Open()]`: a value of the class that its `class_for` gives."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Reads mappings by the class's `class_for`; values pass."""

        def read(value: Any) -> BaseModel:
            if isinstance(value, source):
                return value
            if not isinstance(value, Mapping):
                text = "expected a mapping"
                raise PydanticCustomError("unnamed", "{text}", {"text": text})
            written: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
            return value_of(source, written)

        return core_schema.no_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A mapping."""
        return {"type": "object"}


def value_of(found: type[BaseModel], written: Mapping[str, Any]) -> BaseModel:
    """A value of a class, as a recipe writes it.

    Raises:
        ValidationError: a key does not fit.
        PydanticCustomError: a key names what nothing has.
    """
    try:
        if issubclass(found, Node):
            return built(found, written)
        return found.model_validate_json(json.dumps(written), strict=True)
    except RecipeError as error:
        raise PydanticCustomError("unknown_name", "{text}", {"text": str(error)}) from error


def _written(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    return value.model_dump(mode=info.mode)
