"""Built-in tasks that need no network: for the quick start, the tests and the documentation.

A recipe names one as `world:sums` (model and pairs, with an exact judge), `world:styles` (remarks
that are liked in a circle), `world:scenes` (pictures, and captions that say more than there is) or
`world:bytes` (a random model that reads any text); `world:file.py:object` is one of its writer's
own, a child of `align.worlds.base.World`.
"""

from __future__ import annotations

from align import registry
from align.errors import RecipeError
from align.worlds.base import World

PREFIX = "world:"


def world(name: str) -> World:
    """The world called `name`, with or without the recipe's prefix `world:`.

    Raises:
        RecipeError: there is no such world, or it cannot be made.
    """
    bare = name.removeprefix(PREFIX)
    problem = registry.no_such_world(f"{PREFIX}{bare}")
    if problem is not None:
        raise RecipeError(f"There is {problem}")
    found = registry.find("world", bare)
    try:
        made = found.value() if isinstance(found.value, type) else found.value
    except TypeError as error:
        raise RecipeError(
            f"The world {name!r} ({found.origin}) cannot be made without arguments: {error}."
        ) from error
    if not isinstance(made, World):
        raise RecipeError(
            f"The world {name!r} ({found.origin}) is no child of align.worlds.base.World."
        )
    return made
