"""Kinds about words and letters that must, or must not, stand in an answer."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction, Relation, compared


def _times(text: str, answer: str) -> int:
    """Occurrences that do not overlap, in any case, also within longer words."""
    return len(re.findall(re.escape(text), answer, flags=re.IGNORECASE))


class Existence(Instruction):
    """Keywords stand in the answer, in any case; within a longer word counts."""

    kind: Literal["keywords:existence"] = "keywords:existence"
    """Which kind."""
    keywords: tuple[str, ...] = Field(min_length=1)
    """All of them must be there."""
    phrasings: ClassVar = (
        "Use all of these words in your answer: {keywords}.",
        "Your text has to mention {keywords}.",
        "Make sure that {keywords} can be found in what you write.",
    )

    def _holds(self, answer: str) -> bool:
        return all(_times(word, answer) for word in self.keywords)

    def demanded(self) -> tuple[str, ...]:
        """The keywords."""
        return self.keywords


class Frequency(Instruction):
    """A keyword stands in the answer so and so often, in any case; within a longer word counts."""

    kind: Literal["keywords:frequency"] = "keywords:frequency"
    """Which kind."""
    keyword: str = Field(min_length=1)
    """What is counted."""
    frequency: int = Field(ge=0)
    """How often."""
    relation: Relation
    """Whether that is the least, or too much."""
    phrasings: ClassVar = (
        'The word "{keyword}" has to appear {relation} {frequency} times in your answer.',
        'Write "{keyword}" {relation} {frequency} times.',
        'Mention "{keyword}" {relation} {frequency} times in your text.',
    )

    def _holds(self, answer: str) -> bool:
        return compared(_times(self.keyword, answer), self.relation, self.frequency)

    def demanded(self) -> tuple[str, ...]:
        """The keyword."""
        return (self.keyword,)


class ForbiddenWords(Instruction):
    """Words that the answer leaves out, in any case; within a longer word they are allowed."""

    kind: Literal["keywords:forbidden_words"] = "keywords:forbidden_words"
    """Which kind."""
    forbidden_words: tuple[str, ...] = Field(min_length=1)
    """None of them may be there."""
    phrasings: ClassVar = (
        "Do without these words: {forbidden_words}.",
        "Your answer may not use {forbidden_words}.",
        "Leave out {forbidden_words} wherever you could write them.",
    )

    def _holds(self, answer: str) -> bool:
        return not any(
            re.search(rf"\b{re.escape(word)}\b", answer, flags=re.IGNORECASE)
            for word in self.forbidden_words
        )


class LetterFrequency(Instruction):
    """One letter, or another character, so and so often, in either case.

    Two rows of the public data ask for # and !. Published scores count a letter drawn at random for
    them; here the character is counted that the prompt asks for.
    """

    kind: Literal["keywords:letter_frequency"] = "keywords:letter_frequency"
    """Which kind."""
    letter: str = Field(min_length=1, max_length=1)
    """What is counted; the public data also have # and !."""
    let_frequency: int = Field(ge=0)
    """How often."""
    let_relation: Relation
    """Whether that is the least, or too much."""
    phrasings: ClassVar = (
        "The letter {letter} has to appear {let_relation} {let_frequency} times in your answer.",
        "Use the letter {letter} {let_relation} {let_frequency} times.",
    )

    def _holds(self, answer: str) -> bool:
        found = answer.lower().count(self.letter.lower())
        return compared(found, self.let_relation, self.let_frequency)
