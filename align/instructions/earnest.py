"""Whether an answer is earnest: a text of its own, not one that games the check.

A model that is trained on checks alone learns to meet them with little: it copies the instruction
("Your answer must not contain a comma."), repeats a word, or says next to nothing. An earnest
answer has at least 5 words, at least 60 % of its words are distinct, and it copies no run of four
words from its instruction. These thresholds are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

COPIED = 4
FEWEST = 5
DISTINCT = 0.6
# The share of distinct words falls with the length of any text, so it is taken in windows of so
# many words, and averaged: the moving-average type-token ratio of Covington and McFall 2010.
WINDOW = 50


def is_earnest(answer: str, instruction: str, demanded: Iterable[str] = ()) -> bool:
    """Whether an answer is a text of its own.

    Args:
        answer: what the model wrote.
        instruction: the sentences that state what is checked, or the whole prompt.
        demanded: texts that must be taken over (`Instruction.demanded`): copying within them is no
            copying, and an answer that is one of them is earnest.
    """
    words = words_of(answer)
    allowed = [words_of(text) for text in demanded]
    if words and words in allowed:
        return True
    if len(words) < FEWEST or distinct_share(words) < DISTINCT:
        return False
    own = {run for text in allowed for run in runs(text)}
    return not (runs(words) & runs(words_of(instruction))) - own


def distinct_share(words: list[str]) -> float:
    """Distinct words among all, in (0, 1]; beyond 50 words the mean over windows of 50.

    Raises:
        ValueError: there is no word.
    """
    if not words:
        raise ValueError("A text without a word has no share of distinct ones.")
    size = min(WINDOW, len(words))
    starts = range(len(words) - size + 1)
    return sum(len(set(words[at : at + size])) for at in starts) / (size * len(starts))


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes, case-folded."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.casefold())


def runs(words: list[str]) -> set[tuple[str, ...]]:
    """All runs of four words."""
    return {tuple(words[at : at + COPIED]) for at in range(len(words) - COPIED + 1)}
