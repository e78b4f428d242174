"""Sentences of English text, counted as published IFEval scores count them.

Those scores were made with Punkt (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence
Boundary Detection", Computational Linguistics 32:4) and its English model. These rules are its
decision procedure with short word lists in place of the learned tables. Its surprises are kept,
since they are in the scores: the numeral of a list item ("1.") is a sentence, so are "e.g.",
"i.e." and "etc."; asterisks or quotation marks that close the text behind a full stop are one
more; lines without a mark at their end are not parted; typographic quotation marks hide the mark
before them. They differ from it where it has learned a rarer abbreviation, and where a capital
letter behind an abbreviation or an ellipsis belongs to a word that it has only seen in small ones.
"""

from __future__ import annotations

import re
from itertools import zip_longest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a sentence can end in, within a chunk that no blank parts: marks before one of these, or, but
# for the last chunk of a text, before its end.
_BEFORE = r"[?!)\";}\]*:@'({\[]"
_WITHIN = re.compile(rf"[.?!]+(?={_BEFORE})")
_MARKS = re.compile(rf"[.?!]+(?={_BEFORE}|\Z)")
# What closes a sentence from behind its marks.
_CLOSING = re.compile(r"\s*[\"')\]}]+(?=\s|--|\Z)")
# What parts words besides blanks; with an apostrophe in it no word is an abbreviation.
_BETWEEN = re.compile(r"[?!)\";}\]*:@({\[]")
_NUMBER = re.compile(r"[.,]?\d[\d,.\-]*\Z")

_TITLES = "mr mrs ms dr prof sr jr st messrs lt col gen maj sen rep reps"
_FIRMS = "inc ltd co corp cos bros cie"
_TIMES = "jan feb aug sep sept oct nov dec tues wed fri yr a.m p.m"
_PLACES = (
    "u.s u.s.a u.k u.n n.y n.j n.c n.h n.m n.d d.c s.c s.a r.i l.a w.va u.s.s.r ariz calif colo "
    "conn fla ga ill kan ky mich minn nev okla ore pa tenn va vt wash wis ave"
)
_INITIALS = "j.k j.r j.p j.b j.c j.j r.j h.c c d e f g h k l m n p r s t v w"
_OTHERS = "vs ph.d m.b.a ft mg ct adm ok ala"
_ABBREVIATIONS = _words(f"{_TITLES} {_FIRMS} {_TIMES} {_PLACES} {_INITIALS} {_OTHERS}")
# Behind an abbreviation or an ellipsis only these, with a capital, begin a sentence; behind an
# initial no name is one of the others either.
_STARTERS = _words(
    "the this these they there he it i if in so some since when while but however although though "
    "even both many most despite thus yet nor instead indeed meanwhile"
)
_NO_NAMES = _STARTERS | _words(
    "a an that those she we you his her its my our your their each every all any no one two three "
    "four five six seven eight nine ten on at by for from of to with into about after before "
    "between during how what which who where why because then now once also only as and or not "
    "please let write find given"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    found: list[str] = []
    start = 0
    chunks = list(re.finditer(r"\S+", text))
    for chunk, behind in zip_longest(chunks, chunks[1:]):
        marks = list((_WITHIN if behind is None else _MARKS).finditer(chunk[0]))
        # Of several places in a chunk, such as the two of `etc.).`, only the last one is an end.
        stop = chunk.start() + marks[-1].end() if marks else start
        if stop > start and any(_ends(chunk, at, behind) for at in marks):
            if closing := _CLOSING.match(text, stop):
                stop = closing.end()
            found.append(text[start:stop].strip())
            start = stop
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


def _ends(chunk: re.Match[str], marks: re.Match[str], behind: re.Match[str] | None) -> bool:
    """Whether marks in a chunk end a sentence, by the word before and the word behind them."""
    first = re.match(r"\w+", behind[0]) if behind and marks.end() == len(chunk[0]) else None
    following = first[0] if first else ""
    if marks[0].startswith("..") and marks[0].endswith(".."):
        return _starts(following)
    before = _BETWEEN.split(chunk[0][: marks.start()])[-1].lstrip("`#&,-").lower()
    if marks[0] != "." or not before:
        return True
    if before in _ABBREVIATIONS:
        return len(before) > 1 and _starts(following)
    if following[:1].islower():
        return not (_NUMBER.match(before) or re.fullmatch(r"[^\W\d]", before))
    if re.fullmatch(r"[^\W\d]", before) and following[:1].isupper():
        return following.lower() in _NO_NAMES or (before in "abix" and _opens_line(chunk))
    return True


def _starts(word: str) -> bool:
    return word[:1].isupper() and word.lower() in _STARTERS


def _opens_line(chunk: re.Match[str]) -> bool:
    """Whether a chunk is the first of its line, as the `A.` of an outline is."""
    line = chunk.string.rfind("\n", 0, chunk.start()) + 1
    return not chunk.string[line : chunk.start()].strip()
