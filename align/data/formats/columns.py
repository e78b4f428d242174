"""The columns beside the texts: their names, and what may stand in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from align.data.images import Degraded, ImageRef, refs_of
from align.data.problems import RowProblem

# Columns that change what a model sees: dropped in silence, they would leave
# another conversation to train on.
UNSUPPORTED_COLUMNS = ("videos", "audios", "tools")

IMAGES = ("images", "image", "rejected_images", "image_places")

# Column of `PreferencePair` -> how it may be spelled.
SCORES: Mapping[str, tuple[str, ...]] = {
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "preference": ("preference",),
    "margin": ("margin",),
}

TOKEN_WEIGHTS = ("chosen_token_weight", "rejected_token_weight")

ENDS = ("chosen_ends", "rejected_ends")

TOKEN_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def weights_of(row: Mapping[str, Any], column: str) -> tuple[float, ...] | None:
    """One number per token; None where the column is absent."""
    values = row.get(column)
    if values is None:
        return None
    if not isinstance(values, list):
        raise RowProblem("bad_score", column, f"{type(values).__name__} instead of a list")
    return tuple(number_of(value, f"{column}[{i}]") for i, value in enumerate(values))


def truth_of(row: Mapping[str, Any], column: str) -> bool | None:
    """True or false; None where the column is absent."""
    value = row.get(column)
    if value is not None and not isinstance(value, bool):
        raise RowProblem("wrong_type", column, f"{type(value).__name__} instead of true or false")
    return value


def ids_of(row: Mapping[str, Any], column: str) -> tuple[int, ...] | None:
    """Token ids, at least one; None where the column is absent."""
    values = row.get(column)
    if values is None:
        return None
    if not isinstance(values, list):
        raise RowProblem("wrong_type", column, f"{type(values).__name__} instead of a list")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int):
            kind = type(value).__name__
            raise RowProblem("wrong_type", f"{column}[{i}]", f"{kind} instead of a token id")
        if value < 0:
            raise RowProblem("wrong_type", f"{column}[{i}]", "a token id below 0")
    if not values:
        raise RowProblem("missing_field", column, "no id")
    return tuple(values)


def rejected_images_of(
    row: Mapping[str, Any], images: tuple[ImageRef, ...] | None, source: str
) -> tuple[ImageRef, ...] | Degraded | None:
    """What the rejected side shows instead of `images`; None where that is the same."""
    value = row.get("rejected_images")
    if isinstance(value, Mapping) and "method" in value:
        try:
            found = Degraded.model_validate(dict(value))
        except ValidationError as error:
            raise RowProblem("wrong_type", "rejected_images", "no known degradation") from error
    else:
        found = refs_of(value, "rejected_images", source)
    if found is None or images is None:
        if found is not None:
            raise RowProblem("missing_field", "images", "absent beside rejected_images")
        return None
    if isinstance(found, tuple) and len(found) != len(images):
        detail = f"{len(found)} pictures, and images has {len(images)}: both share the prompt"
        raise RowProblem("wrong_type", "rejected_images", detail)
    return found


def number_of(value: object, at: str) -> float:
    """`value` as a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem("bad_score", at, f"{type(value).__name__} instead of a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowProblem("bad_score", at, "not finite")
    return number
