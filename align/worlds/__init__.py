"""Built-in tasks that need no network: for the quick start, the tests and the documentation.

A recipe names one as `world:sums` (model and pairs, with an exact judge), `world:styles` (remarks
that are liked in a circle), `world:scenes` (pictures, and captions that say more than there is) or
`world:bytes` (a random model that reads any text).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from align.errors import RecipeError
from align.worlds.bytes import Bytes
from align.worlds.scenes import Scenes
from align.worlds.styles import Styles
from align.worlds.sums import Sums

PREFIX = "world:"
WORLDS = {"sums": Sums, "styles": Styles, "bytes": Bytes, "scenes": Scenes}


class World(Protocol):
    """A task that is built in code."""

    name: str

    def base_model(self) -> Path:
        """An ordinary transformers folder, model and tokenizer; built once, then cached."""
        ...


def world(name: str) -> Sums | Styles | Bytes | Scenes:
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
            f"{', '.join(PREFIX + known for known in WORLDS)}.{hint}"
        )
    return WORLDS[bare]()


def game_or_task(name: str) -> Sums | Styles | Scenes:
    """The world called `name`, which must have prompts.

    Raises:
        RecipeError: there is no such world, or it has none.
    """
    found = world(name)
    if isinstance(found, Bytes):
        raise RecipeError(
            f"The world {PREFIX}{found.name} has no prompts and no judge: take {PREFIX}sums, "
            f"{PREFIX}styles or {PREFIX}scenes, or give the rows as a file."
        )
    return found


def judged_world(name: str) -> Sums:
    """The world called `name`, which must have a judge of right and wrong.

    Raises:
        RecipeError: there is no such world, or it has no such judge.
    """
    found = world(name)
    if not isinstance(found, Sums):
        raise RecipeError(
            f"The world {PREFIX}{found.name} has no judge of right and wrong, so it can neither "
            f"give pairs nor be measured here: take {PREFIX}sums, or give the pairs as a file."
        )
    return found
