"""Demonstrations for `world:instructions`: a request of the same kind with an answer that meets it.

A small model follows some instructions next to never, so its own samples hold no answer that could
be preferred. Behind a demonstration it follows them now and then, in words of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.instructions.base import Instruction
from align.instructions.case import CapitalWordFrequency
from align.instructions.ends import EndChecker, Quotation
from align.instructions.formats import NumberBulletLists, Title
from align.instructions.keywords import Existence, ForbiddenWords
from align.instructions.lengths import NumberSentences, NumberWords


@dataclass(frozen=True)
class Shown:
    """A topic that no request has, and what can be said about it.

    Attributes:
        name: as it stands in a request.
        words: two that the facts do without.
        with_words: a sentence with both.
        title: of a text about it.
        facts: sentences without a comma and without an end.
    """

    name: str
    words: tuple[str, str]
    with_words: str
    title: str
    facts: tuple[str, str, str, str, str, str]


TOPICS = (
    Shown(
        "umbrellas",
        ("rain", "hand"),
        "An umbrella keeps the rain off and needs only one hand",
        "A Roof to Carry",
        (
            "Umbrellas keep people dry on wet days",
            "They fold up small and fit in almost any bag",
            "Many of them are black but some show bright patterns",
            "A strong wind can turn a cheap one inside out",
            "Good ones last for years when they are dried before they are put away",
            "Some people also like them as shade on a sunny beach",
        ),
    ),
    Shown(
        "pencils",
        ("paper", "wood"),
        "A pencil is made of wood and glides over paper with ease",
        "The Quiet Tool",
        (
            "Pencils are cheap and easy to find",
            "They work in any weather and never leak into a pocket",
            "What they write can be rubbed out and written again",
            "Artists choose soft ones for shadows and hard ones for fine lines",
            "A sharp knife is enough to make an old one new",
            "Many writers still begin their first drafts with one",
        ),
    ),
)


def demonstration(instruction: Instruction, shown: Shown) -> tuple[Instruction, str]:
    """The same instruction for another topic, and an answer that meets it."""
    facts = [f"{fact}." for fact in shown.facts]
    few, many = " ".join(facts[:2]), " ".join(facts)
    match instruction:
        case Existence():
            return Existence(keywords=shown.words), f"{shown.with_words}. {facts[0]}"
        case ForbiddenWords():
            return ForbiddenWords(forbidden_words=shown.words), few
        case NumberSentences() | NumberWords():
            return instruction, many if instruction.relation == "at least" else few
        case NumberBulletLists():
            return instruction, "\n".join(f"* {fact}" for fact in facts[: instruction.num_bullets])
        case EndChecker():
            return instruction, f"{few} {instruction.end_phrase}"
        case Quotation():
            return instruction, f'"{few}"'
        case CapitalWordFrequency():
            words = few.split()
            for at in range(instruction.capital_frequency):
                words[2 * at] = words[2 * at].upper()
            return instruction, " ".join(words)
        case Title():
            return instruction, f"<<{shown.title}>>\n{few}"
        case _:
            return instruction, few
