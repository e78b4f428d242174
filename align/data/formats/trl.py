"""TRL's preference format: `chosen` and `rejected`, plain or messages, with or without `prompt`.

UltraFeedback-binarized belongs here: `prompt` is a string and both sides are whole conversations
that begin with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data.formats.reading import Reading, Texts
from align.data.formats.shared_prompt import split_messages, split_plain, without_prompt
from align.data.messages import Message, Text
from align.data.problems import RowProblem


def read_trl(row: Mapping[str, Any], reading: Reading) -> Texts:
    """Prompt, chosen and rejected of one row."""
    chosen = reading.text_or_messages(row.get("chosen"), "chosen")
    rejected = reading.text_or_messages(row.get("rejected"), "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowProblem("wrong_type", "rejected", "one side is text, the other messages")
    prompt: Text | None = None
    if reading.explicit_prompt:
        prompt = reading.text_or_messages(row.get("prompt"), "prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return split_plain(chosen, rejected, reading)
        return prompt, chosen, rejected
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if prompt is None:
        return split_messages(chosen, rejected)
    if isinstance(prompt, str):
        return _join_prompt(prompt, chosen, rejected)
    return prompt, without_prompt(prompt, chosen), without_prompt(prompt, rejected)


def _join_prompt(prompt: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Texts:
    """A prompt as a string beside messages: UltraFeedback-binarized, whole conversations or not."""
    if len(chosen) < 2 and len(rejected) < 2:
        return (Message(role="user", content=prompt),), chosen, rejected
    turns, chosen_turn, rejected_turn = split_messages(chosen, rejected)
    if not any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in turns):
        raise RowProblem("prompts_differ", "prompt", "no user turn of chosen holds this text")
    return turns, chosen_turn, rejected_turn
