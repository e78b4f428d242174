"""What a model server is to the library: one request in, one reply or one kind of trouble out."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from align.data.messages import Message, Text
from align.servers.calls import key_of


@dataclass(frozen=True)
class Call:
    """One question to a model.

    Attributes:
        prompt: plain text, the messages of a conversation, or token ids.
        parameters: exactly what is sent along; strict JSON.
        template: version of what the prompt was made with.
        parser: version of what decides whether an answer is usable.
        sample: number of the repetition.
        images: what the first user turn shows before its words, as data URIs.
    """

    prompt: Text | tuple[int, ...]
    parameters: Mapping[str, Any]
    template: str
    parser: str
    sample: int = 0
    images: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...] | None:
        """The conversation; None for plain text and for token ids."""
        if isinstance(self.prompt, str) or self.holds_ids:
            return None
        return tuple(turn for turn in self.prompt if isinstance(turn, Message))

    def conversation(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's form, pictures as parts of the first user turn."""
        written: list[dict[str, Any]] = [turn.model_dump() for turn in self.messages or ()]
        if self.images:
            first = next(turn for turn in written if turn["role"] == "user")
            shown = [{"type": "image_url", "image_url": {"url": one}} for one in self.images]
            first["content"] = [*shown, {"type": "text", "text": first["content"]}]
        return written

    @property
    def holds_ids(self) -> bool:
        """Whether the prompt is token ids."""
        return not isinstance(self.prompt, str) and any(isinstance(x, int) for x in self.prompt)

    def key(self, model: str, revision: str) -> str:
        """The key in the call store."""
        messages = self.messages
        prompt: Any = (
            self.prompt
            if messages is None
            else [[message.role, message.content] for message in messages]
        )
        if self.images:
            prompt = [prompt, list(self.images)]
        return key_of(
            prompt_bytes=json.dumps(prompt, separators=(",", ":")).encode("ascii"),
            model=model,
            revision=revision,
            parameters=self.parameters,
            template=self.template,
            parser=self.parser,
            sample=self.sample,
        )


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: of the model.
        finish: why it ended, in the server's word: `stop`, `length`, `content_filter`, ...
        refusal: the server's own words where it declined.
        prompt_tokens: as the server counts them.
        completion_tokens: as the server counts them.
        logprobs: what the server says of its tokens, as it came: `tokens`, `token_logprobs`,
            `top_logprobs`, `token_ids`, each only where it was given.
    """

    text: str
    finish: str
    refusal: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Unanswered:
    """A call without a usable answer; nothing of it was stored."""

    reason: str
    detail: str


class Transient(Exception):
    """No answer this time.

    Args:
        detail: what happened.
        is_servers: the server itself is the cause (it cannot be reached, is overloaded, wants fewer
            requests); else the request may be, as where a server breaks over one prompt.
        asked_to_wait: seconds that the server asked for.
    """

    def __init__(
        self, detail: str, *, is_servers: bool = False, asked_to_wait: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_servers = is_servers
        self.asked_to_wait = asked_to_wait


class Rejected(Exception):
    """The server says that this one request is wrong."""


class Caller(Protocol):
    """Sends one request at a time to one model server."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def revision(self) -> str:
        """Which weights bear the name now."""
        ...

    @property
    def address(self) -> str:
        """Where the server is; holds no secret."""
        ...

    @property
    def extra(self) -> Mapping[str, Any]:
        """Further parameters that go along with every call to this server."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Callable[[Call], Awaitable[Reply]]]:
        """A function that sends one request.

        It raises Transient, Rejected, or a child of AlignError, which stops every call.
        """
        ...


def no_text(reply: Reply) -> Unanswered | None:
    """Why a reply holds no text of the model, or None."""
    if reply.refusal or reply.finish == "content_filter":
        return Unanswered("refused", f"a refusal (finish_reason {reply.finish})")
    if not reply.text.strip():
        return Unanswered("empty", f"an empty answer (finish_reason {reply.finish})")
    return None
