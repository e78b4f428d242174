"""Built-in tasks that need no network: for the quick start, the tests and the documentation.

A recipe names one as `world:sums` (model and pairs, with an exact judge) or `world:bytes` (a random
model that reads any text).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from align.errors import RecipeError
from align.worlds.bytes import Bytes
from align.worlds.sums import Sums

PREFIX = "world:"
WORLDS = {"sums": Sums, "bytes": Bytes}


class World(Protocol):
    """A task that is built in code."""

    name: str

    def base_model(self) -> Path:
        """An ordinary transformers folder, model and tokenizer; built once, then cached."""
        ...


def world(name: str) -> Sums | Bytes:
    """The world called `name`, with or without the recipe's prefix `world:`.

    Raises:
        RecipeError: there is no such world.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in WORLDS:
        near = difflib.get_close_matches(bare, WORLDS, n=1)
        hint = f" Did you mean {PREFIX}{near[0]}?" if near else ""
        raise RecipeError(
            f"There is no built-in world {name!r}; there are "
            f"{' and '.join(PREFIX + known for known in WORLDS)}.{hint}"
        )
    return WORLDS[bare]()


def judged_world(name: str) -> Sums:
    """The world called `name`, which must have a judge: pairs can be sampled and tasks measured.

    Raises:
        RecipeError: there is no such world, or it has no judge.
    """
    found = world(name)
    if not isinstance(found, Sums):
        raise RecipeError(
            f"The world {PREFIX}{found.name} has no judge, so it can neither give pairs nor be "
            f"measured: take {PREFIX}sums, or give the pairs as a file."
        )
    return found
