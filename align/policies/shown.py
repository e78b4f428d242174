"""What an OpenAI-compatible server shows of the tokens it read and wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.servers.server import Call, Reply, Unanswered

NO_LOGPS = "the server gives no log-probs of its tokens"
# How vLLM writes a token under `return_tokens_as_token_ids`.
_NUMBERED = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class Shown:
    """A server's account of its tokens.

    Attributes:
        finish: why it ended, in the server's word.
        tokens: their texts; exact numbers as `token_id:7` from servers set to do so.
        logps: nats, one per token; None where nothing predicts it.
        ids: one per token, where the server names them.
        likeliest: per token, the likeliest ones in its place with their log-probs [nats]; empty
            where they are not shown.
    """

    finish: str
    tokens: tuple[str, ...]
    logps: tuple[float | None, ...]
    ids: tuple[int, ...] | None
    likeliest: tuple[Mapping[str, float], ...]


def shown_id(token: str) -> int | None:
    """The id that a token's text is, where the server writes ids for texts."""
    found = _NUMBERED.fullmatch(token)
    return int(found[1]) if found else None


def shown_of(reply: Reply) -> Shown:
    """The account in a reply.

    Raises:
        ValueError: it is no whole account.
    """
    given = reply.logprobs or {}
    tokens, logps = given.get("tokens"), given.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logps, list):
        raise ValueError(NO_LOGPS)
    if len(tokens) != len(logps) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("the server's tokens and log-probs are not one list of texts and numbers")
    if not all(logp is None or _is_logp(logp) for logp in logps):
        raise ValueError("a log-prob of the server is no number at or below 0")
    likeliest = given.get("top_logprobs") or []
    if not isinstance(likeliest, list) or not all(_are_logps(one) for one in likeliest):
        raise ValueError("the server's likeliest tokens are no texts with log-probs")
    named = given.get("token_ids") or [shown_id(token) for token in tokens]
    ids = [i for i in named if isinstance(i, int)] if isinstance(named, list) else []
    return Shown(
        finish=reply.finish,
        tokens=tuple(tokens),
        logps=tuple(logps),
        ids=tuple(ids) if len(ids) == len(tokens) else None,
        likeliest=tuple(one or {} for one in likeliest),
    )


def trouble(_: Call, reply: Reply) -> Unanswered | None:
    """Why a reply is no account of tokens, or None; an answer without text is one."""
    if reply.refusal or reply.finish == "content_filter":
        return Unanswered("refused", f"a refusal (finish_reason {reply.finish})")
    try:
        shown_of(reply)
    except ValueError as error:
        return Unanswered("unanswered", str(error))
    return None


def _is_logp(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Rounding in 16 bits lifts a certain token's a little above 0.
    return math.isfinite(value) and value <= 0.01


def _are_logps(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_logp, value.values())))
