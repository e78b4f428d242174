"""Demonstrations before a prompt: shown to a policy when it samples, and not when it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.data.messages import Text
from align.data.prompts import Prompt
from align.errors import DataError

_TEXT: TypeAdapter[Text] = TypeAdapter(Text)


def with_hint(prompt: Prompt, hint: Text) -> Prompt:
    """The prompt behind a hint: turns after a leading system message, or text before a text.

    Raises:
        DataError: one is a text and the other messages.
    """
    asked = prompt.prompt
    if isinstance(asked, str) and isinstance(hint, str):
        return prompt.model_copy(update={"prompt": hint + asked})
    if isinstance(asked, str) or isinstance(hint, str):
        forms = ["a text" if isinstance(one, str) else "messages" for one in (asked, hint)]
        raise DataError(
            f"{prompt.source}, row {prompt.row}: the prompt is {forms[0]} and its hint is "
            f"{forms[1]}: write both in one form."
        )
    system = 1 if asked[0].role == "system" else 0
    return prompt.model_copy(update={"prompt": (*asked[:system], *hint, *asked[system:])})


def hint_of_row(prompt: Prompt, columns: Mapping[str, Any]) -> Text:
    """The column `hint` of the prompt's row: a text, or a list of messages.

    Raises:
        DataError: there is none, or it is neither.
    """
    value = columns.get("hint")
    try:
        return _TEXT.validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        found = "no column hint" if value is None else f"{type(value).__name__} as its hint"
        raise DataError(
            f"{prompt.source}, row {prompt.row}: {found}. Samples behind a hint need a text or a "
            "list of messages there; or write `hinted: 0` in the generate stage."
        ) from None
