"""Where a model is served over an OpenAI-compatible HTTP interface, and one request to it."""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from align.errors import MachineError, RecipeError
from align.servers.server import Call, Rejected, Reply, Transient

NO_KEY = "EMPTY"
SHOWN = 200


class Endpoint(BaseModel):
    """Where a model is served; a node of the recipe.

    Attributes:
        base_url: of the API, up to and including `/v1`.
        model: as the server calls it.
        revision: which weights bear this name now: a commit, a hash of the weights, or a word of
            your own, such as the model's date. It is part of the key of every stored answer, so it
            must change when the weights do; the server is not told.
        api_key_env: name of the environment variable that holds the key, such as OPENAI_API_KEY;
            null sends none.
        timeout: seconds that one request may take.
        extra: further fields of every request, for what one kind of server needs, such as
            {return_token_ids: true} for vLLM. They are part of the key too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_url: str
    model: str = Field(min_length=1)
    revision: str = Field(min_length=1)
    api_key_env: str | None = None
    timeout: float = Field(default=600.0, gt=0.0)
    extra: Mapping[str, JsonValue] = {}

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urllib.parse.urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # It is written into ledgers, cards and messages.
            raise ValueError("base_url must hold no user, password or query; use api_key_env")
        return value.rstrip("/")

    def api_key(self) -> str:
        """The key, or a word that servers without keys ignore.

        Raises:
            RecipeError: the variable is not set.
        """
        if self.api_key_env is None:
            return NO_KEY
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise RecipeError(
                f"api_key_env names the environment variable {self.api_key_env}, which is not set. "
                "Set it, or leave api_key_env out for a server that needs no key."
            )
        return value


class OpenAICaller:
    """Sends single requests to one endpoint, without any retry of its own.

    Args:
        endpoint: where.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    @property
    def model(self) -> str:
        """As the server calls it."""
        return self.endpoint.model

    @property
    def revision(self) -> str:
        """Which weights bear the name now."""
        return self.endpoint.revision

    @property
    def address(self) -> str:
        """Where the server is."""
        return self.endpoint.base_url

    @property
    def extra(self) -> Mapping[str, JsonValue]:
        """Further fields of every request."""
        return self.endpoint.extra

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Callable[[Call], Awaitable[Reply]]]:
        """One client with its connections; what it yields sends one request."""
        from openai import AsyncOpenAI  # heavy: only when a server is asked; recipes load without

        endpoint = self.endpoint
        # Without a key of its own, an endpoint gets none of the user's OpenAI settings either: an
        # empty text keeps the client from reading them from the environment.
        account = "" if endpoint.api_key_env is None else None
        async with AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key(),
            organization=account,
            project=account,
            timeout=endpoint.timeout,
            max_retries=0,
        ) as client:

            async def send(call: Call) -> Reply:
                return await self._send(client, call)

            yield send

    async def _send(self, client: Any, call: Call) -> Reply:
        import openai  # heavy: see `connect`

        raw = client.with_raw_response
        # As extra fields: which arguments the client itself knows differs between its versions.
        body = dict(call.parameters)
        try:
            if call.messages is None:
                response = await raw.completions.create(
                    model=self.model, prompt=call.prompt, extra_body=body
                )
            else:
                messages = call.conversation()
                response = await raw.chat.completions.create(
                    model=self.model, messages=messages, extra_body=body
                )
            return _reply(response.http_response.text, is_chat=call.messages is not None)
        except UnicodeEncodeError:
            raise Rejected("the request holds a lone surrogate, which is no text") from None
        except openai.APIConnectionError as error:
            raise self._no_answer(error) from error
        except openai.APIStatusError as error:
            # Without its cause: the client's exception may hold the key and the request's text.
            raise self._status(error, call) from None

    def _no_answer(self, error: Any) -> Transient:
        cause = type(error.__cause__).__name__
        if cause.startswith("Connect"):
            return Transient(f"it cannot be reached ({cause})", is_servers=True)
        if cause.endswith("Timeout"):
            return Transient(f"no answer within {self.endpoint.timeout:g} s")
        return Transient(f"the connection broke ({cause})")

    def _status(self, error: Any, call: Call) -> Exception:
        """What a status other than 200 means; the server's words are shown only where they help."""
        server = f"The server of {self.model} at {self.address}"
        status: int = error.status_code
        wait = retry_after(error.response.headers)
        if status in (429, 502, 503, 504):
            return Transient(f"HTTP {status}", is_servers=True, asked_to_wait=wait)
        if status in (408, 409) or status >= 500:
            return Transient(f"HTTP {status}", asked_to_wait=wait)
        if status in (401, 403):
            # The body of such an answer may repeat the key.
            key = self.endpoint.api_key_env
            where = f"the key in the environment variable {key}" if key else "a request without key"
            return MachineError(
                f"{server} does not accept {where} (HTTP {status}). Set api_key_env to a "
                "variable with a valid key, and run the same command again: what was answered is "
                "stored and is not asked twice."
            )
        words = " ".join(str(error.message).replace(self.endpoint.api_key(), "***").split())
        if status == 404 and call.holds_ids:
            return RecipeError(
                f"{server} answers HTTP 404 at /completions: {words[:SHOWN]}. What continues an "
                "answer that has begun needs that route, which vLLM has and chat-only servers have "
                "not: look at base_url, which ends in /v1, and at the model's name, or name the "
                "weights as a folder or Hub id."
            )
        if status == 404:
            return RecipeError(
                f"{server} answers HTTP 404: {words[:SHOWN]}. Look at base_url, which ends in "
                "/v1, and at the model's name."
            )
        return Rejected(f"HTTP {status}: {words[:SHOWN]}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `Retry-After` in seconds or as a date, or its ms form."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _reply(text: str, *, is_chat: bool) -> Reply:
    """The reply in a response's body; whatever is no reply is a fault of the way."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message = choice["message"] if is_chat else choice
        content = message.get("content") if is_chat else choice["text"]
        refusal = message.get("refusal") if is_chat else None
        finish = choice.get("finish_reason") or "unknown"
        usage = body.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Transient(f"the body is no completion ({type(error).__name__})") from error
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        raise Transient("the body is no completion (its text is no text)")
    prompt_tokens, completion_tokens = (n if isinstance(n, int) else None for n in counts)
    logprobs = None if is_chat else _logprobs(choice)
    return Reply(content or "", str(finish), refusal, prompt_tokens, completion_tokens, logprobs)


def _logprobs(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a choice of `/completions` says of its tokens; vLLM puts their ids beside it."""
    given = choice.get("logprobs")
    found = {
        name: given[name]
        for name in ("tokens", "token_logprobs", "top_logprobs")
        if isinstance(given, dict) and given.get(name) is not None
    }
    if choice.get("token_ids") is not None:
        found["token_ids"] = choice["token_ids"]
    return found or None
