"""The requests of `world:instructions`: topics, ways to ask, and instructions that can be checked.

Every request is one of ours: a way to ask, about a topic, with one instruction. Ten kinds of
instructions are trained; four others are only ever measured, and so are twelve of the topics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.instructions.base import Instruction
from align.instructions.case import CapitalWordFrequency, NoComma
from align.instructions.content import NumberPlaceholders, Postscript
from align.instructions.ends import EndChecker, Quotation
from align.instructions.formats import NumberBulletLists, NumberHighlightedSections, Title
from align.instructions.keywords import Existence, ForbiddenWords, LetterFrequency
from align.instructions.lengths import NumberSentences, NumberWords


@dataclass(frozen=True)
class Topic:
    """What a request is about.

    Attributes:
        name: as it stands in the request.
        words: two that a text about it may well use.
    """

    name: str
    words: tuple[str, str]


@dataclass(frozen=True)
class Request:
    """What the policy is asked.

    Attributes:
        text: the user's turn.
        sentence: the part of it that states the instruction.
        instruction: what is checked.
    """

    text: str
    sentence: str
    instruction: Instruction


WAYS = (
    "Tell me about {topic}.",
    "Write a short text about {topic}.",
    "Why do people like {topic}?",
    "What should a beginner know about {topic}?",
)

TRAIN_TOPICS = tuple(
    Topic(name, words)
    for name, words in (
        ("honey bees", ("flower", "hive")),
        ("old bridges", ("river", "stone")),
        ("baking bread", ("flour", "oven")),
        ("night trains", ("station", "sleep")),
        ("kites", ("wind", "string")),
        ("chess", ("king", "board")),
        ("lighthouses", ("sea", "light")),
        ("growing tomatoes", ("soil", "water")),
        ("public libraries", ("book", "read")),
        ("bicycles", ("wheel", "road")),
        ("snow", ("cold", "winter")),
        ("learning the guitar", ("music", "finger")),
        ("cats", ("fur", "sleep")),
        ("the moon", ("night", "earth")),
        ("paper maps", ("road", "travel")),
        ("weekend markets", ("fruit", "people")),
        ("jogging", ("shoes", "health")),
        ("green tea", ("leaf", "hot")),
        ("sailing boats", ("wind", "water")),
        ("museums", ("art", "history")),
        ("camp fires", ("wood", "warm")),
        ("keeping a diary", ("write", "day")),
        ("mountain huts", ("hike", "snow")),
        ("penguins", ("ice", "fish")),
    )
)
HELD_OUT_TOPICS = tuple(
    Topic(name, words)
    for name, words in (
        ("apple trees", ("fruit", "garden")),
        ("swimming in lakes", ("water", "summer")),
        ("owls", ("night", "forest")),
        ("board games", ("play", "family")),
        ("clocks", ("time", "hour")),
        ("making soup", ("pot", "vegetables")),
        ("street musicians", ("song", "city")),
        ("rain", ("cloud", "water")),
        ("photographs", ("camera", "memory")),
        ("deserts", ("sand", "hot")),
        ("learning a language", ("words", "speak")),
        ("horses", ("ride", "grass")),
    )
)

ENDINGS = ("That is all for today.", "Ask me again tomorrow.", "Now it is your turn.")


def trained(topic: Topic) -> Iterator[tuple[Instruction, str]]:
    """Instructions of the ten kinds that are trained, for a topic, each with its sentence."""
    plain: list[Instruction] = [
        NoComma(),
        Existence(keywords=topic.words),
        ForbiddenWords(forbidden_words=topic.words),
        NumberSentences(num_sentences=3, relation="less than"),
        NumberSentences(num_sentences=5, relation="at least"),
        NumberWords(num_words=25, relation="less than"),
        NumberWords(num_words=50, relation="at least"),
        NumberBulletLists(num_bullets=3),
        NumberBulletLists(num_bullets=4),
        *(EndChecker(end_phrase=phrase) for phrase in ENDINGS),
        Quotation(),
        CapitalWordFrequency(capital_frequency=2, capital_relation="at least"),
        CapitalWordFrequency(capital_frequency=4, capital_relation="at least"),
    ]
    yield from ((one, one.described()) for one in plain)
    # Without an example of a title, which could be copied.
    yield Title(), "Begin with a title that stands between << and >>."


def untrained(topic: Topic) -> Iterator[tuple[Instruction, str]]:
    """Instructions of the four kinds that are measured only."""
    plain: list[Instruction] = [
        Postscript(postscript_marker="P.S."),
        NumberHighlightedSections(num_highlights=1),
        NumberHighlightedSections(num_highlights=2),
        LetterFrequency(letter=topic.words[0][0], let_frequency=6, let_relation="at least"),
        LetterFrequency(letter="w", let_frequency=4, let_relation="less than"),
        NumberPlaceholders(num_placeholders=1),
    ]
    yield from ((one, one.described()) for one in plain)


def requests(topics: Sequence[Topic], *, are_trained: bool) -> dict[str, list[Request]]:
    """Every request about these topics, by the kind of its instruction."""
    found: dict[str, list[Request]] = {}
    for way, topic in itertools.product(WAYS, topics):
        for instruction, sentence in (trained if are_trained else untrained)(topic):
            text = f"{way.format(topic=topic.name)} {sentence}"
            of_kind = found.setdefault(str(instruction.kind), [])
            of_kind.append(Request(text, sentence, instruction))
    return found
