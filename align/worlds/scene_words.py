"""What can be said about a scene of four cells, and what of it is there to be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "disc", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
Style = Literal["crowd", "annotator"]

SENTENCES = {
    "crowd": "{colour} {shape} {place}.",
    "annotator": "there is a {colour} {shape} in the {place}.",
}
_COLOUR, _SHAPE, _PLACE = ("|".join(words) for words in (COLOURS, SHAPES, PLACES))
_SENTENCE = re.compile(rf"(?:there is a )?({_COLOUR}) ({_SHAPE}) (?:in the )?({_PLACE})\.")


@dataclass(frozen=True)
class Object:
    """A shape of one colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


# Top left, top right, bottom left, bottom right; None where nothing is.
Scene: TypeAlias = tuple[Object | None, Object | None, Object | None, Object | None]


def sentence(one: Object, place: int, style: Style) -> str:
    """What is said about one cell."""
    return SENTENCES[style].format(colour=one.colour, shape=one.shape, place=PLACES[place])


def caption(scene: Scene, style: Style) -> str:
    """One sentence per object, cell by cell."""
    return " ".join(sentence(one, i, style) for i, one in enumerate(scene) if one is not None)


def sentences_of(text: str) -> list[str]:
    """The sentences of an answer, each with its full stop where it has one."""
    return [part.strip() for part in re.findall(r"[^.]+\.?|\.", text) if part.strip()]


def place_and_object(said: str) -> tuple[int, Object] | None:
    """What a sentence says, or None where it says nothing about a cell."""
    found = _SENTENCE.fullmatch(said)
    return None if found is None else (PLACES.index(found[3]), Object(found[1], found[2]))


def style_of(said: str) -> Style:
    """In whose words a sentence is."""
    return "annotator" if said.startswith("there") else "crowd"


def false_and_said(text: str, scene: Scene) -> tuple[int, int]:
    """Sentences that are false, and all of them.

    False is what is not in the picture, a cell told again, and what is no sentence about a cell.
    """
    seen: set[int] = set()
    false, all_said = 0, sentences_of(text)
    for said in all_said:
        found = place_and_object(said)
        if found is None or found[0] in seen or scene[found[0]] != found[1]:
            false += 1
        if found is not None:
            seen.add(found[0])
    return false, len(all_said)
