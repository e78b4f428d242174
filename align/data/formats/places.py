"""Where the pictures of a row's prompt stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.formats.reading import Placeholder, Texts
from align.data.images import ImageRef
from align.data.messages import Message
from align.data.problems import RowProblem

Places = tuple[tuple[int, int], ...]

# Columns of messages that begin with the prompt's.
PROMPTS = ("prompt", "conversations", "conversation", "messages")
SIDES = ("chosen", "rejected")
_IN_MESSAGE = re.compile(r"(\w+)\[(\d+)\]\.(?:content|value)")


def image_places_of(
    row: Mapping[str, Any],
    texts: Texts,
    images: tuple[ImageRef, ...] | None,
    marked: Sequence[Placeholder],
) -> Places | None:
    """Message and character of each picture; None before the words of the first user turn.

    Args:
        row: as the source has it; its column `image_places` goes before what messages mark.
        texts: prompt, chosen and rejected, as a reader found them in it.
        images: of the prompt.
        marked: where messages have a place for a picture.

    Raises:
        RowProblem: places and pictures are not as many, or one stands outside of the prompt.
    """
    prompt: Any = texts[0]
    given = row.get("image_places")
    if given is None and not marked:
        return None
    if images is None:
        at = marked[0].at if marked else "image_places"
        detail = f"absent, while {at} has a place for a picture"
        raise RowProblem("missing_field", "images", detail)
    places = _of_column(given) if given is not None else _of_messages(row, prompt, marked)
    at = marked[0].at if marked else "image_places"
    if len(places) != len(images):
        detail = f"{len(places)} places for {len(images)} pictures"
        raise RowProblem("unsupported_content", at, detail)
    if any(m >= len(prompt) or offset > len(prompt[m].content) for m, offset in places):
        raise RowProblem("unsupported_content", at, "a picture outside of the prompt")
    first = next((i for i, message in enumerate(prompt) if message.role == "user"), None)
    return None if set(places) == {(first, 0)} else tuple(sorted(places))


def _of_column(given: Any) -> list[tuple[int, int]]:
    try:
        places = [(int(message), int(offset)) for message, offset in given]
    except (TypeError, ValueError):
        places = [(-1, 0)]
    if any(min(place) < 0 for place in places):
        detail = "no list of [message, characters before the picture]"
        raise RowProblem("wrong_type", "image_places", detail)
    return places


def _of_messages(
    row: Mapping[str, Any], prompt: Sequence[Message], marked: Sequence[Placeholder]
) -> list[tuple[int, int]]:
    """The prompt's, which columns of whole conversations may repeat."""
    found: dict[str, list[tuple[int, int]]] = {}
    for one in marked:
        column, message = _message_of(one)
        if column in SIDES:
            whole: Any = row.get(column)
            answer = len(whole) - len(prompt) if isinstance(whole, list) else 1
            inside = answer > 0 and message < len(prompt)
        else:
            inside = column in PROMPTS
            if inside:
                # A column `system` becomes a message before those of the row.
                message += len(prompt) - len(row[column])
        if not inside:
            raise RowProblem("unsupported_content", one.at, "a picture outside of the prompt")
        found.setdefault(column, []).append((message, one.offset))
    first, *others = found.values()
    if any(places != first for places in others):
        detail = "the pictures of both sides' prompts stand at different places"
        raise RowProblem("prompts_differ", marked[0].at, detail)
    return first


def _message_of(one: Placeholder) -> tuple[str, int]:
    matched = _IN_MESSAGE.fullmatch(one.at)
    if matched is None:
        raise RowProblem("unsupported_content", one.at, "a picture outside of the prompt")
    return matched[1], int(matched[2])
