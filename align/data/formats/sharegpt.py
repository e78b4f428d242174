"""ShareGPT: a dialogue in `conversations` (or `messages`), one answer each in chosen and rejected.

Messages are spelled {from, value} (LLaMA-Factory) or {role, content} (axolotl).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data.formats.reading import Reading, Texts
from align.data.formats.shared_prompt import without_prompt
from align.data.messages import Message


def read_sharegpt(row: Mapping[str, Any], reading: Reading) -> Texts:
    """Prompt, chosen and rejected of one row."""
    column = _dialogue_column(row) or "conversations"
    prompt = reading.messages(row.get(column), column)
    system = row.get("system")
    if system and not (prompt and prompt[0].role == "system"):
        prompt = (Message(role="system", content=reading.text(system, "system")), *prompt)
    sides: list[tuple[Message, ...]] = []
    for at in ("chosen", "rejected"):
        value = row.get(at)
        if isinstance(value, str):
            side = (Message(role="assistant", content=reading.text(value, at)),)
        else:
            side = without_prompt(prompt, reading.messages(value, at))
        sides.append(side)
    return prompt, sides[0], sides[1]


def _dialogue_column(row: Mapping[str, Any]) -> str | None:
    names = ("conversations", "conversation", "messages")
    return next((name for name in names if row.get(name) is not None), None)
