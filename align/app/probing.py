# pyright: basic
"""How far two models are apart on a few sentences: what `align merge` checks its work by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from align.data.messages import Message
from align.forest import TokenRow, score_rows
from align.policies.prompting import Prompting

# Any text would do.
PROBE = (
    ("Name three things that float.", "A cork, a leaf and an empty bottle with its cap on."),
    ("Why is the sky dark at night?", "The side of the Earth we stand on faces away from the Sun."),
    ("12 + 30 = ?", "12 + 30 = 42, because 10 + 30 = 40 and 2 more make 42."),
    ("Write one line of Python.", "print(sum(n * n for n in range(10)))"),
)


@dataclass(frozen=True)
class Difference:
    """How far two models' log-probs of the probe are apart.

    Attributes:
        mean: of all tokens, in nats.
        largest: of one token, in nats.
    """

    mean: float
    largest: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.mean:.2g} nats a token on average, {self.largest:.2g} at most"


def difference(one: torch.Tensor, other: torch.Tensor) -> Difference:
    """Between what `probe_logps` gives of two models; NaN where one of them is not finite."""
    apart = (one - other).abs()
    return Difference(float(apart.mean()), float(apart.max()))


def probe_rows(tokenizer: Any) -> list[TokenRow]:
    """The probe as token rows; through the chat template where there is one."""
    prompting = Prompting(tokenizer)
    has_chat = prompting.tokenizer.chat_template is not None
    return [
        prompting.row((Message(role="user", content=q),) if has_chat else q, answer)
        for q, answer in PROBE
    ]


def probe_logps(model: Any, rows: Sequence[TokenRow]) -> torch.Tensor:
    """[N] nats, float32 on the CPU: of all completion tokens of the probe."""
    scored = score_rows(model, rows)
    return scored.token[scored.mask].float().cpu()
