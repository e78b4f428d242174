"""The text of a row: plain, or the turns of a conversation."""

from __future__ import annotations

import re
from typing import Literal

from align.data.records import Record, content_id

ChatRole = Literal["system", "user", "assistant", "tool"]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Message(Record):
    """One turn of a conversation."""

    role: ChatRole
    content: str


Text = str | tuple[Message, ...]


def prompt_id(prompt: Text) -> str:
    """16 hex characters of a prompt's text, whatever else its row holds."""
    return content_id(
        prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
    )
