"""Kinds about pieces that an answer must contain: placeholders, a postscript."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction


class NumberPlaceholders(Instruction):
    """At least so many placeholders in square brackets, each on one line."""

    kind: Literal["detectable_content:number_placeholders"] = (
        "detectable_content:number_placeholders"
    )
    """Which kind."""
    num_placeholders: int = Field(ge=0)
    """How many at least."""
    phrasings: ClassVar = (
        "Leave at least {num_placeholders} placeholders in square brackets, such as [name].",
        "Put {num_placeholders} or more blanks to be filled in, written like [date], into it.",
    )

    def _holds(self, answer: str) -> bool:
        return len(re.findall(r"\[.*?\]", answer)) >= self.num_placeholders


class Postscript(Instruction):
    """A postscript behind its marker, in any case; P.S. and P.P.S also with spaces between."""

    kind: Literal["detectable_content:postscript"] = "detectable_content:postscript"
    """Which kind."""
    postscript_marker: str = Field(min_length=1)
    """What it begins with, such as P.S. or P.P.S."""
    phrasings: ClassVar = (
        "Add a postscript that begins with {postscript_marker}",
        "Close with a postscript; mark it by {postscript_marker}",
    )

    def _holds(self, answer: str) -> bool:
        known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
        marker = known.get(self.postscript_marker, re.escape(self.postscript_marker.lower()))
        return re.search(marker, answer.lower()) is not None

    def demanded(self) -> tuple[str, ...]:
        """The marker."""
        return (self.postscript_marker,)
