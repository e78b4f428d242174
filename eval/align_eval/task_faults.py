"""What is wrong with a task file, in words: all of it at once, unknown keys with the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from align.nearest import did_you_mean


def faults_in_words(error: ValidationError, top: type[BaseModel]) -> str:
    """All faults of a file that `top` describes."""
    return "; ".join(_in_words(cast("Mapping[str, Any]", fault), top) for fault in error.errors())


def _in_words(fault: Mapping[str, Any], top: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = fault["loc"]
    where = ".".join(map(str, location))
    match fault["type"]:
        case "conflict":
            within = f"{where}." if where else ""
            return " ".join(f"{within}{key}: {text}" for key, text in fault["ctx"]["conflicts"])
        case "missing":
            return f"{where}: is missing"
        case "extra_forbidden":
            known = list(_section(top, location[:-1]).model_fields)
            near = did_you_mean(str(location[-1]), known)
            return f"{where}: no such key{near or '; the keys here are ' + ', '.join(known)}"
        case _:
            return f"{where}: {fault['msg']}" if where else "it holds no mapping of keys"


def _section(model: Any, location: tuple[int | str, ...]) -> type[BaseModel]:
    """The class whose keys stand at a place."""
    for key in location:
        if isinstance(key, str):
            annotation = model.model_fields[key].annotation
            inner = (annotation, *get_args(annotation))
            model = next(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return model
