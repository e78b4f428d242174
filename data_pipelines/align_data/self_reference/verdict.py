"""The verdict that a critique ends with; labels that the critique quotes do not count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from align.judges.base import Side

PARSER = "verdict-line-2"
Rule = Literal["line", "sentence", "none", "forced"]
_SIDES: dict[str, Side] = {"A": "first", "B": "second"}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MENTION = re.compile(r"\b[Aa](?:nswer|NSWER)\s+[\"'*_`]*(A|B)\b")
_PREFERS = re.compile(r"\b(?:better|best|prefer|choose|chosen|pick|winner|wins)\b", re.IGNORECASE)
# With one of these the sentence may say the opposite.
_TURNS_ROUND = re.compile(
    r"\b(?:not|no|nor|neither|never|worse|than|less|lose[sr]?|hardly|cannot|if|unless|\w+n't)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parsed:
    """What a critique says.

    Attributes:
        side: the one that it chooses; None where it does not say, or says two things.
        rule: what the side was read from.
        body: the critique without its verdict lines.
    """

    side: Side | None
    rule: Rule
    body: str


def parse(text: str, code: str, *, rule: Literal["line", "line_or_sentence"] = "line") -> Parsed:
    """The verdict of one critique.

    A verdict is a line of `VERDICT <code>: A` or `B` and nothing else but markup; all such lines
    must say the same. With `line_or_sentence`, where there is none, a last sentence counts that
    names exactly one of `answer A` and `answer B`, calls it better, and denies or compares nothing.

    Args:
        text: the critique.
        code: of its annotation.
        rule: what counts.
    """
    line = re.compile(
        rf"[ \t>#*_`]*VERDICT[ \t*_`]+{re.escape(code)}[ \t*_`]*:[ \t*_`]*(A|B)[ \t*_`.]*\r?",
        flags=re.IGNORECASE,
    )
    body: list[str] = []
    found: set[str] = set()
    for part in text.split("\n"):
        match = line.fullmatch(part)
        if match is None:
            body.append(part)
        else:
            found.add(match[1].upper())
    rest = "\n".join(body).rstrip()
    if len(found) == 1:
        return Parsed(_SIDES[found.pop()], "line", rest)
    if not found and rule == "line_or_sentence":
        side = _of_last_sentence(rest)
        if side is not None:
            return Parsed(side, "sentence", rest)
    return Parsed(None, "none", rest)


def _of_last_sentence(text: str) -> Side | None:
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    if not sentences:
        return None
    last = sentences[-1]
    named = set(_MENTION.findall(last))
    if len(named) != 1 or not _PREFERS.search(last) or _TURNS_ROUND.search(last):
        return None
    return _SIDES[named.pop()]
