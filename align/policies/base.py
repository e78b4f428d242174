"""What every policy engine offers: completions of prompts, and log-probs where it has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from align.data.completions import Completion
from align.data.messages import Message, Text
from align.data.prompts import Prompt

if TYPE_CHECKING:
    from align.forest.rows import TokenRow
    from align.types import Logps

FAILURES: Mapping[str, str] = {
    "unfinished": "max_new_tokens were drawn and no end token or stop text was among them",
    "empty": "the completion is empty or white space",
    "refused": "the server answered with a refusal or a content filter instead of a completion",
    "too_long": "the prompt leaves no room for max_new_tokens in the model's context",
    "rejected": "the server says that this request is wrong (HTTP 400, 413, 422, ...)",
    "unanswered": "no usable answer came in the allowed number of tries",
}


class Sampling(BaseModel):
    """How completions are drawn; a node of the recipe.

    Attributes:
        max_new_tokens: most tokens of a completion, its end token included.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: smallest set of tokens with this much probability is drawn from; 1 takes all.
        top_k: number of likeliest tokens that are drawn from; 0 takes all.
        stop: texts that end a completion and are no part of it.
        keep_unfinished: a completion cut off at max_new_tokens is kept, marked as unfinished, and
            not a failure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    keep_unfinished: bool = False

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop text would end every completion at once")
        return value


@dataclass(frozen=True)
class Failed:
    """A sample that gave no completion.

    Attributes:
        prompt: what was to be continued.
        sample: number of the continuation of this prompt, from 0.
        reason: one of the codes of FAILURES.
        detail: for people; never the text of a row.
    """

    prompt: Prompt
    sample: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do besides generating.

    Attributes:
        logps: it scores token rows.
        reproducible: a sample depends on (seed, prompt id, sample index) and on nothing else.
    """

    logps: bool
    reproducible: bool


class Policy(Protocol):
    """A language model with fixed weights."""

    @property
    def identity(self) -> str:
        """Hash of the weights, or model@revision at URL."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do besides generating."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """`n` samples of every prompt: outer list in the order of the prompts, inner by sample."""
        ...

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Log-probs [nats] of the completion tokens of every row.

        Raises:
            RecipeError: `capabilities.logps` is False.
        """
        ...


def sample_seed(seed: int, prompt: Prompt, sample: int) -> int:
    """A number in [0, 2**31) that belongs to one sample of one prompt, wherever it is drawn."""
    return stream_seed(seed, prompt.id, sample)


def stream_seed(seed: int, key: str, sample: int) -> int:
    """A number in [0, 2**31) that belongs to one sample of what `key` names."""
    text = f"{seed}/{key}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def completion_of(
    prompt: Prompt, text: str, *, policy: str, sample: int, finished: bool = True
) -> Completion:
    """`text` as a continuation: plain after a plain prompt, else one assistant turn."""
    written: Text = (
        text if isinstance(prompt.prompt, str) else (Message(role="assistant", content=text),)
    )
    return Completion(
        prompt=prompt.prompt,
        completion=written,
        policy=policy,
        sample=sample,
        finished=finished,
        group_id=prompt.group_id,
        source=prompt.source,
        row=prompt.row,
    )
