"""What every section of a recipe is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

KeyPath: TypeAlias = tuple[str, ...]
Conflict: TypeAlias = tuple[str, str]  # key inside the section, what is wrong and how to go on


class Section(BaseModel):
    """What every section of a recipe is: frozen, without unknown keys, without nan or inf."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Keys that are fine each by itself and cannot stand together."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> Section:
        conflicts = list(self.conflicts())
        if conflicts:
            text = " ".join(f"{key}: {problem}." for key, problem in conflicts)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": conflicts})
        return self
