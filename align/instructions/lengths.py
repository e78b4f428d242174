"""Kinds about the length of an answer: sentences, paragraphs, words."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction, Relation, compared
from align.instructions.sentences import sentences


class NumberSentences(Instruction):
    """How many sentences, as `align.instructions.sentences` counts them."""

    kind: Literal["length_constraints:number_sentences"] = "length_constraints:number_sentences"
    """Which kind."""
    num_sentences: int = Field(ge=0)
    """How many."""
    relation: Relation
    """Whether that is the least, or too much."""
    phrasings: ClassVar = (
        "Answer in {relation} {num_sentences} sentences.",
        "Your text should be {relation} {num_sentences} sentences long.",
    )

    def _holds(self, answer: str) -> bool:
        return compared(len(sentences(answer)), self.relation, self.num_sentences)


class NumberWords(Instruction):
    """How many words: runs of letters, digits and underscores, so "don't" is two."""

    kind: Literal["length_constraints:number_words"] = "length_constraints:number_words"
    """Which kind."""
    num_words: int = Field(ge=0)
    """How many."""
    relation: Relation
    """Whether that is the least, or too much."""
    phrasings: ClassVar = (
        "Answer in {relation} {num_words} words.",
        "Your text should be {relation} {num_words} words long.",
    )

    def _holds(self, answer: str) -> bool:
        return compared(len(re.findall(r"\w+", answer)), self.relation, self.num_words)


class NumberParagraphs(Instruction):
    """Exactly so many paragraphs, parted by ***; one without text in the middle fails.

    Four or more asterisks in a row are a divider with a paragraph's beginning behind it.
    """

    kind: Literal["length_constraints:number_paragraphs"] = "length_constraints:number_paragraphs"
    """Which kind."""
    num_paragraphs: int = Field(ge=1)
    """How many."""
    phrasings: ClassVar = (
        "Write exactly {num_paragraphs} paragraphs, with *** between one and the next.",
        "Divide your answer into {num_paragraphs} paragraphs by the divider ***.",
    )

    def _holds(self, answer: str) -> bool:
        parts = re.split(r"\s?\*{3}\s?", answer)
        if any(not part.strip() for part in parts[1:-1]):
            return False
        return sum(bool(part.strip()) for part in parts) == self.num_paragraphs


class NthParagraphFirstWord(Instruction):
    """So many paragraphs, parted by an empty line, and the first word of one of them.

    A further empty line makes no paragraph; the public scores nevertheless count places with it,
    so that behind four line ends the next text stands one place later.
    """

    kind: Literal["length_constraints:nth_paragraph_first_word"] = (
        "length_constraints:nth_paragraph_first_word"
    )
    """Which kind."""
    num_paragraphs: int = Field(ge=1)
    """How many there must be."""
    nth_paragraph: int = Field(ge=1)
    """Which one, counted from 1."""
    first_word: str = Field(min_length=1)
    """What it must begin with, in any case, without punctuation."""
    phrasings: ClassVar = (
        "Write {num_paragraphs} paragraphs with an empty line between them, and begin paragraph "
        '{nth_paragraph} with the word "{first_word}".',
        "There must be {num_paragraphs} paragraphs, parted by empty lines; the first word of "
        'paragraph {nth_paragraph} is "{first_word}".',
    )

    def _holds(self, answer: str) -> bool:
        parts = [part.strip() for part in answer.split("\n\n")]
        count = sum(map(bool, parts))
        if count != self.num_paragraphs or self.nth_paragraph > count:
            return False
        words = parts[self.nth_paragraph - 1].split()
        if not words:
            return False
        plain = re.match(r"[^.,?!'\"]*", words[0].lstrip("'").lstrip('"'))
        return plain is not None and plain[0].lower() == self.first_word.lower()

    def demanded(self) -> tuple[str, ...]:
        """The first word."""
        return (self.first_word,)
