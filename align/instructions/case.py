"""Kinds about capital letters, and the comma."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction, Relation, compared
from align.instructions.language import language_of

# What stands between two words: published counts come from the Penn Treebank's rules for these.
# \u2018 to \u201e are typographic quotation marks.
_BETWEEN = re.compile(r"\s+|[;@#$%&?!*<>()\[\]{}\"`\xab\xbb\u2018-\u201e]|--|\.{2,}|[,:](?!\d)")
_WORD = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))?'*", flags=re.IGNORECASE)
# Each is two words there, as "don't" is "do" and "n't".
_TWO = frozenset(("CANNOT", "GIMME", "GONNA", "GOTTA", "LEMME", "WANNA", "'TIS", "'TWAS"))


def capital_words(text: str) -> int:
    """How many words have capitals and no small letter: "I", "NASA" and "COVID-19" are one each.

    As in published scores, a contraction is two words: "DON'T", "IT'S", "CANNOT".
    """
    words = [word for word in map(_WORD.fullmatch, _BETWEEN.split(text)) if word is not None]
    return sum(
        2 if word[1] in _TWO else sum(part is not None and part.isupper() for part in word.groups())
        for word in words
    )


class CapitalWordFrequency(Instruction):
    """Words in capitals alone, so and so many, as `capital_words` counts them."""

    kind: Literal["change_case:capital_word_frequency"] = "change_case:capital_word_frequency"
    """Which kind."""
    capital_frequency: int = Field(ge=0)
    """How many."""
    capital_relation: Relation
    """Whether that is the least, or too much."""
    phrasings: ClassVar = (
        "Write {capital_relation} {capital_frequency} words in capital letters only.",
        "Words all in capitals should appear {capital_relation} {capital_frequency} times.",
    )

    def _holds(self, answer: str) -> bool:
        return compared(capital_words(answer), self.capital_relation, self.capital_frequency)


class EnglishCapital(Instruction):
    """English without a small letter."""

    kind: Literal["change_case:english_capital"] = "change_case:english_capital"
    """Which kind."""
    phrasings: ClassVar = (
        "Write your whole answer in English and in capital letters.",
        "USE ENGLISH WORDS IN CAPITAL LETTERS, and no small letter anywhere.",
    )

    def _holds(self, answer: str) -> bool:
        return answer.isupper() and language_of(answer) == "en"


class EnglishLowercase(Instruction):
    """English without a capital letter."""

    kind: Literal["change_case:english_lowercase"] = "change_case:english_lowercase"
    """Which kind."""
    phrasings: ClassVar = (
        "Write your whole answer in English and in lowercase letters.",
        "use english words in small letters only, and no capital anywhere.",
    )

    def _holds(self, answer: str) -> bool:
        return answer.islower() and language_of(answer) == "en"


class NoComma(Instruction):
    """No comma; those of other scripts are allowed."""

    kind: Literal["punctuation:no_comma"] = "punctuation:no_comma"
    """Which kind."""
    phrasings: ClassVar = (
        "Do not use any commas in your answer.",
        "Your answer must not contain a comma.",
        "Write it without a single comma.",
    )

    def _holds(self, answer: str) -> bool:
        return "," not in answer
