"""The columns of tokenised rows that say what the prompt shows on either side.

chosen_images, rejected_images   places or data URIs; both null on a row without pictures
degraded                         what becomes of the rejected side's pictures: a `Degraded`, or null
pixels                           sha256 over all of it, picture files included

They are not called `images`, because TRL then takes the rows out of our hands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets

from align.data.images import Degraded, ImageRef, content_digest
from align.data.pairs import PreferencePair
from align.reference import digest

if TYPE_CHECKING:
    from datasets import Features

PIXELS = "pixels"
IMAGE_COLUMNS = ("chosen_images", "rejected_images", "degraded", PIXELS)


@dataclass(frozen=True)
class Shown:
    """What one sequence's prompt shows.

    Attributes:
        images: in the order of their places.
        degraded: what becomes of them; None leaves them as they are.
    """

    images: tuple[ImageRef, ...] = ()
    degraded: Degraded | None = None


def image_columns(
    pairs: Sequence[PreferencePair], columns: dict[str, list[Any]], features: Features | dict
) -> None:
    """Adds the columns of `pairs` to those of a data set."""
    refs = datasets.List(datasets.Value("string"))
    features |= {
        "chosen_images": refs,
        "rejected_images": refs,
        "degraded": {
            "method": datasets.Value("string"),
            "share": datasets.Value("float64"),
            "seed": datasets.Value("int64"),
        },
        PIXELS: datasets.Value("string"),
    }
    sides = [sides_of(pair) for pair in pairs]
    columns |= {
        "chosen_images": [list(chosen.images) or None for chosen, _ in sides],
        "rejected_images": [list(rejected.images) or None for _, rejected in sides],
        "degraded": [r.degraded and r.degraded.model_dump(mode="json") for _, r in sides],
        PIXELS: [pixels_digest(*both) for both in sides],
    }


def sides_of(pair: PreferencePair) -> tuple[Shown, Shown]:
    """What the chosen and the rejected side show."""
    images, other = pair.images or (), pair.rejected_images
    if isinstance(other, Degraded):
        return Shown(images), Shown(images, other)
    return Shown(images), Shown(images if other is None else other)


def sides_in(row: Mapping[str, Any]) -> tuple[Shown, Shown]:
    """The same from the columns of a tokenised row."""
    degraded = row.get("degraded")
    if degraded is not None and degraded.get("method") is None:
        # Arrow gives a struct of nulls for a null struct in some of its versions.
        degraded = None
    return (
        Shown(tuple(row.get("chosen_images") or ())),
        Shown(
            tuple(row.get("rejected_images") or ()),
            None if degraded is None else Degraded.model_validate(degraded),
        ),
    )


def pixels_digest(chosen: Shown, rejected: Shown) -> str:
    """Sha256 over everything that both sides show, in hex."""
    return digest(
        part
        for side in (chosen, rejected)
        for part in (
            *(content_digest(ref) for ref in side.images),
            "" if side.degraded is None else side.degraded.model_dump_json(),
        )
    )
