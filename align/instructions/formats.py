"""Kinds about the form of an answer: lists, highlights, sections, JSON, a title."""

from __future__ import annotations

import json
import re
from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class NumberBulletLists(Instruction):
    """Exactly so many bullets: lines that begin with `*`, but not with `**`, or with `-`.

    A rule of hyphens (`---`) is a bullet too.
    """

    kind: Literal["detectable_format:number_bullet_lists"] = "detectable_format:number_bullet_lists"
    """Which kind."""
    num_bullets: int = Field(ge=0)
    """How many."""
    phrasings: ClassVar = (
        "Write exactly {num_bullets} bullet points in Markdown, each on a line such as: * a point",
        "Give a list of exactly {num_bullets} Markdown bullets, like this one:\n* a point",
    )

    def _holds(self, answer: str) -> bool:
        lines = [line.strip() for line in answer.split("\n")]
        bullets = [line for line in lines if line[:1] in ("*", "-") and line[:2] != "**"]
        return len(bullets) == self.num_bullets


class ConstrainedResponse(Instruction):
    """One of three given sentences stands in the answer, in this very case."""

    kind: Literal["detectable_format:constrained_response"] = (
        "detectable_format:constrained_response"
    )
    """Which kind."""
    phrasings: ClassVar = (
        "Answer with one of these sentences: {options}",
        "Choose your answer from the following: {options}",
    )

    def _holds(self, answer: str) -> bool:
        return any(option in answer for option in OPTIONS)

    def said(self) -> dict[str, str]:
        """The three sentences."""
        return {"options": " ".join(f'"{option}"' for option in OPTIONS)}

    def demanded(self) -> tuple[str, ...]:
        """The three sentences."""
        return OPTIONS


class NumberHighlightedSections(Instruction):
    """At least so many pieces of text between asterisks, each on one line: *so* or **so**."""

    kind: Literal["detectable_format:number_highlighted_sections"] = (
        "detectable_format:number_highlighted_sections"
    )
    """Which kind."""
    num_highlights: int = Field(ge=0)
    """How many at least."""
    phrasings: ClassVar = (
        "Highlight at least {num_highlights} parts of your answer in Markdown, *like this*.",
        "Put asterisks around {num_highlights} or more passages, as in *this passage*.",
    )

    def _holds(self, answer: str) -> bool:
        single = re.findall(r"\*([^\n*]*)\*", answer)
        double = re.findall(r"\*\*([^\n*]*)\*\*", answer)
        return sum(bool(text.strip()) for text in single + double) >= self.num_highlights


class MultipleSections(Instruction):
    """At least so many sections, each begun by a word and a number, in this very case."""

    kind: Literal["detectable_format:multiple_sections"] = "detectable_format:multiple_sections"
    """Which kind."""
    section_spliter: str = Field(min_length=1)
    """The word, such as Section or SECTION; the name's spelling is that of the public data."""
    num_sections: int = Field(ge=0)
    """How many at least."""
    phrasings: ClassVar = (
        "Write {num_sections} sections, and begin each with {section_spliter} and its number, as "
        "in: {section_spliter} 1",
        "Divide your answer into {num_sections} parts headed {section_spliter} 1, "
        "{section_spliter} 2 and so on.",
    )

    def _holds(self, answer: str) -> bool:
        heads = re.findall(rf"{re.escape(self.section_spliter)}\s?\d", answer)
        return len(heads) >= self.num_sections


class JsonFormat(Instruction):
    """The whole answer is JSON, or a fenced block of it."""

    kind: Literal["detectable_format:json_format"] = "detectable_format:json_format"
    """Which kind."""
    phrasings: ClassVar = (
        "Give your whole answer as JSON; a Markdown code block around it is fine.",
        "Your output must be valid JSON and nothing else.",
    )

    def _holds(self, answer: str) -> bool:
        text = re.sub(r"\A```(json|Json|JSON)?", "", answer.strip()).removesuffix("```")
        try:
            json.loads(text.strip())
        except (ValueError, RecursionError):
            return False
        return True


class Title(Instruction):
    """A title in double angular brackets, on one line."""

    kind: Literal["detectable_format:title"] = "detectable_format:title"
    """Which kind."""
    phrasings: ClassVar = (
        "Give your answer a title in double angular brackets, as in <<a title>>.",
        "There must be a title, and it must be written <<like this>>.",
    )

    def _holds(self, answer: str) -> bool:
        titles = re.findall(r"<<[^\n]+>>", answer)
        return any(title.lstrip("<").rstrip(">").strip() for title in titles)
