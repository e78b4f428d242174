"""What was drawn, cut into a step; a step is whole tokens.

The rules of `chunk` are those of the program of Xie et al. (2024, arXiv 2405.00451).
Differs from the paper: near duplicates are found as equal texts, not by the similarity of hidden
states; nothing is cut behind a sentence with an answer phrase, and no end token is added that the
policy did not draw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from align.policies.writer import Drawn

LINE_END = "\n"
_LINE = re.compile(r"[^\n]*\n+|[^\n]+\Z")
_SENTENCE = re.compile(r"""(?:(?![.!?]["')\]]*\s)[\s\S])*(?:[.!?]["')\]]*\s+|\Z)""")
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*\s*\Z""")
# Of the program: kept pieces that fill so much of the budget are a step by themselves.
_NEARLY_FULL = 7 / 8

Spelled = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Step:
    """Tokens that continue an answer.

    Attributes:
        ids: the end token included, where one was drawn.
        logps: nats, one per id.
        text: what they spell, without the end token.
        has_end: an end token was drawn.
        is_last: the answer ends here, by an end token or by one of `answer_ends`.
        is_open: the step may go on: it is too short to stand alone.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    has_end: bool = False
    is_last: bool = False
    is_open: bool = False


def pieces(text: str, shortest: int) -> list[str]:
    """`text` at its line ends, or at its sentences' ends where it is one line.

    A piece of fewer than `shortest` characters, white space around it aside, is glued to the next.
    """
    found = _LINE.findall(text)
    if len(found) <= 1:
        found = [piece for piece in _SENTENCE.findall(text) if piece]
    glued: list[str] = []
    for piece in found:
        if glued and len(glued[-1].strip()) < shortest:
            glued[-1] += piece
        else:
            glued.append(piece)
    return glued


def chunk_end(found: Sequence[str], *, at_root: bool, has_ended: bool, filled: float) -> int:
    """Number of pieces of a chunk that make the step.

    All, save the last one in two cases: where a whole solution came at once, which would leave
    nothing to search, and where the last piece is the beginning of a sentence and the others nearly
    fill the step.

    Args:
        found: the chunk's pieces.
        at_root: it was drawn behind the question.
        has_ended: the answer ended within it.
        filled: share of the step's tokens that all but the last piece take.
    """
    if len(found) < 2:
        return len(found)
    whole_solution = at_root and has_ended
    breaks_off = filled >= _NEARLY_FULL and not _SENTENCE_END.search(found[-1])
    return len(found) - 1 if whole_solution or breaks_off else len(found)


def tokens_for(characters: int, ids: Sequence[int], spelled: Spelled) -> int:
    """The fewest of `ids` that spell so many characters; a token is never split."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(spelled(ids[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low


def cut(
    drawn: Drawn,
    kind: Literal["line", "sentence", "chunk", "finish"],
    spelled: Spelled,
    *,
    answer_ends: Sequence[str],
    shortest: int,
    step_tokens: int,
    at_root: bool,
) -> Step:
    """The step at the beginning of what was drawn.

    Args:
        drawn: a continuation.
        kind: what a step is; `finish` takes everything.
        spelled: text of the first so many of the drawn ids.
        answer_ends: texts that end an answer; they are cut off.
        shortest: characters of a step that may stand alone.
        step_tokens: tokens of a step at most.
        at_root: it was drawn behind the question.
    """
    whole = Step(drawn.ids, drawn.logps, drawn.text, drawn.finish == "end", drawn.finish == "end")
    places = [drawn.text.find(end) for end in answer_ends if end in drawn.text]
    if places:
        kept = min(places)
        whole = _first(whole, tokens_for(kept, whole.ids, spelled) if kept else 0, spelled)
        # A token that spells the last of the answer and the first of the header is left out.
        while len(whole.text) > kept:
            whole = _first(whole, len(whole.ids) - 1, spelled)
        whole = replace(whole, is_last=True)
    if kind == "finish":
        return whole
    if kind == "line":
        # The draw stopped at the line's end, so there is nothing behind it.
        return replace(whole, is_open=_is_open(whole, shortest))
    found = pieces(whole.text, shortest)
    if kind == "sentence":
        kept = 1
    else:
        before = sum(map(len, found[:-1]))
        filled = tokens_for(before, whole.ids, spelled) / step_tokens
        kept = chunk_end(found, at_root=at_root, has_ended=whole.is_last, filled=filled)
    if kept < len(found):
        characters = sum(map(len, found[:kept]))
        whole = _first(whole, tokens_for(characters, whole.ids, spelled), spelled)
    return replace(whole, is_open=_is_open(whole, shortest))


def _is_open(step: Step, shortest: int) -> bool:
    return not step.is_last and len(step.text.strip()) < shortest


def _first(step: Step, n: int, spelled: Spelled) -> Step:
    if n >= len(step.ids):
        return step
    return Step(step.ids[:n], step.logps[:n], spelled(step.ids[:n]))


def glued(first: Step, second: Step, text: str) -> Step:
    """Two steps as one; `text` is what they spell together."""
    return replace(second, ids=first.ids + second.ids, logps=first.logps + second.logps, text=text)
