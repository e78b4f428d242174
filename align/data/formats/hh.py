"""Anthropic's HH: `chosen` and `rejected` are transcripts (Bai et al. 2022, arXiv:2204.05862).

Their turns "\\n\\nHuman:" and "\\n\\nAssistant:" become messages without the white space around a
turn; the prompt is every turn before the last Assistant turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from align.data.formats.reading import Reading, Texts
from align.data.formats.shared_prompt import check_same_prompt
from align.data.messages import Message
from align.data.problems import RowProblem

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def read_hh(row: Mapping[str, Any], reading: Reading) -> Texts:
    """Prompt, chosen and rejected of one row."""
    chosen = _transcript(reading.text(row.get("chosen"), "chosen"), "chosen")
    rejected = _transcript(reading.text(row.get("rejected"), "rejected"), "rejected")
    check_same_prompt(chosen[:-1], rejected[:-1])
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _transcript(text: str, at: str) -> tuple[Message, ...]:
    # Content that itself holds "\n\nHuman:" cannot be told from a turn; the format has no escape.
    before, *parts = HH_TURN.split(text.lstrip("\n") if text.startswith("\n\n\n") else text)
    if before.strip() or not parts or parts[0] != "Human":
        raise RowProblem("bad_transcript", at, "does not open with a Human turn")
    if parts[-2] != "Assistant":
        raise RowProblem("bad_transcript", at, "does not end with an Assistant turn")
    return tuple(
        Message(role="user" if who == "Human" else "assistant", content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    )


def is_transcript(text: str) -> bool:
    """Whether `text` looks like a transcript of Human and Assistant turns."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text
