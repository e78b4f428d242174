"""The expert's report: read strictly, sentence by sentence, or refused with what is wrong with it.

Differs from the authors' program, which compares scores to numbers only, so that "3" silently
weighs 1, and error types to lower-case names only, though its own example capitalises one; it keeps
a report that cannot be read as a revision equal to the response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from align.data.messages import LONE_SURROGATE

ERROR_TYPES = ("correct", "image recognition", "language comprehension", "reasoning")
RIGHT = 4
_NUMBER = re.compile("0|[1-9][0-9]{0,5}")
_FENCE = re.compile(r"\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*", flags=re.DOTALL)


class BadReport(ValueError):
    """A report that cannot be used; the message is shown to the expert and quotes no row."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a response, and what the expert made of it.

    Attributes:
        copied: as it stands in the response.
        score: 4 right, 3 small fix, 2 substantial error, 1 irrelevant or wrong.
        error_type: one of ERROR_TYPES.
        objects: (wrong, right) words.
        rewritten: None where the sentence is deleted.
        reason: in the expert's words.
        span_gen: characters [start, end) in the response.
        span_rev: characters [start, end) in the revision; None where it is deleted.
    """

    copied: str
    score: int
    error_type: str
    objects: tuple[tuple[str, str], ...]
    rewritten: str | None
    reason: str
    span_gen: tuple[int, int]
    span_rev: tuple[int, int] | None


@dataclass(frozen=True)
class Report:
    """A report that can be used.

    Attributes:
        sentences: they cover the response, white space aside.
        revised: the revision.
        added: a sentence that the response lacks; None where there is none.
        span_added: its characters in the revision; None where it is not put there.
        description: of the image, where there is one.
    """

    sentences: tuple[Sentence, ...]
    revised: str
    added: str | None
    span_added: tuple[int, int] | None
    description: str | None


def read_report(
    text: str, response: str, *, add_missing: bool = False, max_restyled: float = 0.6
) -> Report:
    """The report in the expert's answer.

    The revision joins the rewritten sentences by the white space that stood between them in the
    response; in the authors' program by one space.

    Args:
        text: the expert's whole answer.
        response: what was to be corrected.
        add_missing: put the added sentence behind the revision.
        max_restyled: share of sentences that may be called right and yet be rewritten.

    Raises:
        BadReport: it is no report about this response.
    """
    keys = _object(text)
    numbers = sorted(int(key) for key in keys if _NUMBER.fullmatch(key))
    if numbers != list(range(len(numbers))) or not numbers:
        raise BadReport('The sentences must have the keys "0", "1", "2" and so on, without a gap.')
    sentences: list[Sentence] = []
    at, revised, restyled = 0, "", 0
    for number in numbers:
        fields = _fields(keys[str(number)], number)
        copied, rewritten = fields["copied"], fields["rewritten"]
        start, end = _place(copied, response, at, number)
        gap = response[at:start]
        span_rev = None
        if rewritten is not None:
            revised += gap if revised or not sentences else ""
            span_rev = (len(revised), len(revised) + len(rewritten))
            revised += rewritten
            restyled += fields["score"] == RIGHT and rewritten != response[start:end]
        fields["copied"] = response[start:end]
        sentences.append(Sentence(**fields, span_gen=(start, end), span_rev=span_rev))
        at = end
    if response[at:].strip():
        raise BadReport(f"The response goes on after sentence {numbers[-1]}; copy all sentences.")
    if restyled > max_restyled * len(sentences):
        raise BadReport(
            f"{restyled} of {len(sentences)} sentences are called right (score 4) and rewritten; "
            "copy right sentences unchanged."
        )
    added = _optional_text(keys, "added")
    span_added = None
    if added is not None and add_missing:
        lead = " " if revised else ""
        span_added = (len(revised) + len(lead), len(revised) + len(lead) + len(added))
        revised += lead + added
    else:
        revised += response[at:]
    description = _optional_text(keys, "image description")
    return Report(tuple(sentences), revised, added, span_added, description)


def _object(text: str) -> Mapping[str, Any]:
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise BadReport(
            f"The answer is no JSON ({error.msg}, line {error.lineno}, column {error.colno}); "
            "write one JSON object and nothing else."
        ) from error
    except BadReport:
        raise
    except (RecursionError, ValueError) as error:
        # Too deep, or a number of thousands of digits.
        raise BadReport("The answer is no plain JSON; write one flat JSON object.") from error
    if not isinstance(found, dict):
        raise BadReport(f"The answer is a JSON {type(found).__name__}; write one JSON object.")
    if LONE_SURROGATE.search(json.dumps(found, ensure_ascii=False)):
        raise BadReport("The answer holds half a character (a lone surrogate); write it out.")
    return cast(dict[str, Any], found)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [_plain(key) for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise BadReport("The JSON has a key twice; write each key once.")
    return dict(zip(keys, (value for _, value in pairs), strict=True))


def _plain(key: str) -> str:
    return key.strip().casefold().replace("_", " ")


def _fields(node: Any, number: int) -> dict[str, Any]:
    at = f"Sentence {number}"
    if not isinstance(node, dict):
        raise BadReport(f"{at} must be a JSON object.")
    given = cast(dict[str, Any], node)
    absent = [k for k in ("sentence", "score", "error type", "rewritten") if k not in given]
    if absent:
        raise BadReport(f"{at} lacks {', '.join(absent)}.")
    copied, rewritten = given["sentence"], given["rewritten"]
    if not isinstance(copied, str) or not copied.strip():
        raise BadReport(f"{at}: `sentence` must be the sentence of the response.")
    if rewritten is not None and (not isinstance(rewritten, str) or not rewritten.strip()):
        raise BadReport(f"{at}: `rewritten` must be a text, or null to delete the sentence.")
    error_type = given["error type"]
    if not isinstance(error_type, str) or _plain(error_type) not in ERROR_TYPES:
        raise BadReport(f"{at}: `error_type` must be one of {', '.join(ERROR_TYPES)}.")
    reason = given.get("reason")
    return {
        "copied": copied.strip(),
        "score": _score(given["score"], at),
        "error_type": _plain(error_type),
        "objects": _objects(given.get("objects"), at),
        "rewritten": None if rewritten is None else rewritten.strip(),
        "reason": reason if isinstance(reason, str) else "",
    }


def _score(value: Any, at: str) -> int:
    score: int | None = None
    if isinstance(value, str) and re.fullmatch(r"\s*[1-4](?:\.0+)?\s*", value):
        score = int(float(value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and value in (1, 2, 3, 4):
        score = int(value)
    if score is None:
        raise BadReport(f"{at}: `score` must be 1, 2, 3 or 4.")
    return score


def _objects(value: Any, at: str) -> tuple[tuple[str, str], ...]:
    pairs = cast(list[Any], value) if isinstance(value, list) else [] if value is None else None
    if pairs is None or not all(
        isinstance(pair, dict)
        and isinstance(pair.get("wrong"), str)  # pyright: ignore
        and isinstance(pair.get("right"), str)  # pyright: ignore
        for pair in pairs
    ):
        raise BadReport(f"{at}: `objects` must be a list of objects with `wrong` and `right`.")
    return tuple((pair["wrong"], pair["right"]) for pair in pairs)


def _place(copied: str, response: str, at: int, number: int) -> tuple[int, int]:
    """Where the sentence stands; between its words any white space will do."""
    while at < len(response) and response[at].isspace():
        at += 1
    words = r"\s+".join(map(re.escape, copied.split()))
    found = re.compile(words).match(response, at)
    if found is None:
        raise BadReport(
            f"Sentence {number} is not the next one of the response; copy its sentences one after "
            "the other, word for word, and leave none out."
        )
    return found.span()


def _optional_text(keys: Mapping[str, Any], name: str) -> str | None:
    value = keys.get(name)
    return value.strip() if isinstance(value, str) and value.strip() else None
