"""A row's texts, messages and content parts, in any of the usual spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.data.messages import LONE_SURROGATE, ChatRole, Message, Text
from align.data.problems import RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport

# Prompt, chosen and rejected.
Texts = tuple[Text, Text, Text]

CHAT_ROLES: Mapping[str, ChatRole] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}

# Message keys that change what a model sees: dropped in silence, they would leave another
# conversation to train on.
UNSUPPORTED_KEYS = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "reasoning_content",
    "thinking",
    "images",
    "audio",
)


@dataclass(frozen=True)
class Placeholder:
    """Where a message says that a picture stands.

    Attributes:
        at: the message's content, as errors call it.
        offset: characters of that content before the picture.
    """

    at: str
    offset: int


class Reading:
    """What reading one row needs besides the row.

    Attributes:
        policy: what to do with rows that cannot be used as they are.
        report: of all rows; columns that nobody reads are named there.
        explicit_prompt: whether the rows have a column `prompt`.
        notes: what was done to the row in hand.
        placeholders: where messages of the row in hand have a place for a picture, in order.
    """

    def __init__(self, policy: RowPolicy, report: RowReport, *, explicit_prompt: bool) -> None:
        self.policy = policy
        self.report = report
        self.explicit_prompt = explicit_prompt
        self.notes: set[str] = set()
        self.placeholders: list[Placeholder] = []

    def text(self, value: object, at: str) -> str:
        """`value` if it is text, with lone surrogates as the policy says."""
        if value is None:
            raise RowProblem("missing_field", at, "absent or null")
        if not isinstance(value, str):
            raise RowProblem("wrong_type", at, f"{type(value).__name__} instead of text")
        found = LONE_SURROGATE.search(value)
        if found is None:
            return value
        if self.policy.on_bad_unicode != "replace":
            raise RowProblem("bad_unicode", at, f"lone surrogate at character {found.start() + 1}")
        self.notes.add("unicode_replaced")
        return LONE_SURROGATE.sub("\ufffd", value)

    def text_or_messages(self, value: object, at: str) -> Text:
        """Text as it is, or messages where `value` holds any."""
        if isinstance(value, list | Mapping):
            return self.messages(value, at)
        return self.text(value, at)

    def messages(self, value: object, at: str) -> tuple[Message, ...]:
        """A list of messages, or a single one, in either spelling."""
        if value is None:
            raise RowProblem("missing_field", at, "absent or null")
        if isinstance(value, Mapping):
            return (self._message(value, at),)
        if not isinstance(value, list):
            raise RowProblem("wrong_type", at, f"{type(value).__name__} instead of messages")
        return tuple(self._message(message, f"{at}[{i}]") for i, message in enumerate(value))

    def _message(self, message: object, at: str) -> Message:
        if not isinstance(message, Mapping):
            raise RowProblem("wrong_type", at, f"{type(message).__name__} instead of a message")
        role_key = "from" if "role" not in message and "from" in message else "role"
        content_key = "value" if "content" not in message and "value" in message else "content"
        spelled = self.text(message.get(role_key), f"{at}.{role_key}")
        if spelled == "function_call":
            raise RowProblem("unsupported_content", f"{at}.{role_key}", "a tool call")
        role = CHAT_ROLES.get(spelled)
        if role is None:
            raise RowProblem("wrong_roles", f"{at}.{role_key}", f"unknown role {spelled[:40]!r}")
        others = [key for key in message if key not in (role_key, content_key)]
        for key in UNSUPPORTED_KEYS:
            if key in others and message[key]:
                raise RowProblem("unsupported_content", f"{at}.{key}", "more than text")
        used = [f"messages[].{key}" for key in others if message[key] is not None]
        self.report.ignore_columns(used)
        content = message.get(content_key)
        if isinstance(content, list):
            content = self._parts(content, f"{at}.{content_key}")
        return Message(role=role, content=self.text(content, f"{at}.{content_key}"))

    def _parts(self, parts: list[Any], at: str) -> str:
        """The text of OpenAI-style content parts."""
        texts: list[str] = []
        for i, part in enumerate(parts):
            if not isinstance(part, Mapping):
                raise RowProblem("wrong_type", f"{at}[{i}]", f"{type(part).__name__} as a part")
            if part.get("type") == "image":
                # The row's pictures stand in columns of their own.
                self.placeholders.append(Placeholder(at, sum(map(len, texts))))
                continue
            if part.get("type") != "text":
                raise RowProblem("unsupported_content", f"{at}[{i}]", "a part that is no text")
            texts.append(self.text(part.get("text"), f"{at}[{i}].text"))
        return "".join(texts)
