"""The two sides of a pair: whether one ends, what they say, and others in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable

from align.data.messages import Message, Text
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem

_IN_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")


def side_ends(pair: PreferencePair, at: str) -> bool:
    """Whether the side `at` is a whole answer; False for the beginning of one."""
    return (pair.chosen_ends if at == "chosen" else pair.rejected_ends) is not False


def with_sides(pair: PreferencePair, chosen: str, rejected: str) -> PreferencePair:
    """The prompt of `pair` with two other answers, and nothing else of it."""
    sides: list[Text] = [
        (Message(role="assistant", content=side),) if pair.is_conversational else side
        for side in (chosen, rejected)
    ]
    return PreferencePair(
        prompt=pair.prompt,
        chosen=sides[0],
        rejected=sides[1],
        images=pair.images,
        image_places=pair.image_places,
        source=pair.source,
        row=pair.row,
    )


def unused_character(texts: Iterable[Text]) -> str:
    """A character of Unicode's private use that none of `texts` holds.

    Raises:
        RowProblem: they hold all of them.
    """
    held = {c for text in contents(texts) for c in _IN_PRIVATE_USE.findall(text)}
    free = next((c for c in map(chr, range(0xE000, 0xF900)) if c not in held), None)
    if free is None:
        raise RowProblem("bad_unicode", "prompt", "every private-use character is in use")
    return free


def contents(texts: Iterable[Text]) -> Iterable[str]:
    """What texts say, message by message."""
    for text in texts:
        if isinstance(text, str):
            yield text
        else:
            yield from (message.content for message in text)
