"""The code of a user's own that a recipe names: found without running any of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align import registry

# Keys whose words may be `module:object` or `file.py:object`; the others, of worlds only.
NAMES = ("name", "by", "run", "engine", "format", "suite", "tasks")
WORLDS = ("model_name_or_path", "source", "pairs", "world", "suite")


def own_words(values: Any, key: str = "") -> Iterator[str]:
    """The words of a recipe's plain values that name code, without the prefix of a world."""
    if isinstance(values, Mapping):
        for inner, value in values.items():  # pyright: ignore[reportUnknownVariableType]
            yield from own_words(value, str(inner))  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(values, list | tuple):
        for value in values:  # pyright: ignore[reportUnknownVariableType]
            yield from own_words(value, key)
    elif isinstance(values, str):
        if key == "tasks" and values.endswith((".yaml", ".yml")):
            yield from own_words(_task_file(Path(values).expanduser()))
        bare = values.removeprefix(registry.WORLD)
        is_world = bare != values
        if registry.is_path(bare) and key in (WORLDS if is_world else NAMES):
            yield bare


def code_digests(values: Any) -> dict[str, str]:
    """Word -> sha256 of the file that it names; a module's package has a version of its own."""
    found: dict[str, str] = {}
    for word in own_words(values):
        path = Path(word.rpartition(":")[0]).expanduser()
        if path.suffix == ".py" and path.is_file():
            found[word] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _task_file(path: Path) -> Any:
    """A task's plain values: it may name code too. What cannot be read is said where it is used."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
