"""The prompt that both sides of a row begin with, where it has no prompt of its own.

Where plain rows have no prompt, it is what both sides begin with, cut back to the last sign of an
assistant's turn in it ("\\n\\nAssistant:", "[/INST]", "<|im_start|>assistant", ...), so a first
word that both answers share stays in the answers. Without such a sign it is cut back to a word
border and the row is counted as `prompt_guessed`. No side is left empty.
"""

from __future__ import annotations

import re

from align.data.formats.reading import Reading, Texts
from align.data.messages import Message
from align.data.problems import RowProblem

ASSISTANT_TURN = re.compile(
    r"\n(?:Assistant|ASSISTANT|AI|Bot|A):"
    r"|(?<= )ASSISTANT:"
    r"|\n### (?:Response|Assistant):\n*"
    r"|\[/INST\]"
    r"|<\|im_start\|>assistant\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<start_of_turn>model\n"
    r"|<\|assistant\|>\n?"
)


def split_plain(chosen: str, rejected: str, reading: Reading) -> Texts:
    """The implicit prompt of two plain texts; the docstring of this file has the rule."""
    if not chosen.strip() or not rejected.strip():
        at = "rejected" if chosen.strip() else "chosen"
        raise RowProblem("empty_completion", at, "empty or white space")
    if chosen == rejected:
        raise RowProblem("equal", "rejected", "the same text as chosen")
    shortest = min(len(chosen), len(rejected))
    common = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    marks = list(ASSISTANT_TURN.finditer(chosen, 0, common))
    if marks:
        cut = marks[-1].end()
    else:
        # A completion begins with the space before its first word, as tokenizers see words.
        if common == shortest or not chosen[common - 1 : common].isspace():
            words = re.match(r"(?s).*(?=\s)", chosen[:common])
            cut = words.end() if words else 0
        else:
            cut = common
        cut = len(chosen[:cut].rstrip()) if chosen[:cut].endswith((" ", "\t")) else cut
        reading.notes.add("prompt_guessed")
    if not chosen[:cut].strip():
        raise RowProblem(
            "empty_prompt", "prompt", "both sides begin differently: a prompt column is needed"
        )
    for at, side in (("chosen", chosen), ("rejected", rejected)):
        if not side[cut:].strip():
            raise RowProblem("empty_completion", at, "nothing behind the common prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two whole conversations -> their common turns and the two last ones."""
    for at, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise RowProblem("empty_completion", at, "no message")
        if len(side) == 1:
            raise RowProblem("missing_field", "prompt", f"{at} is a single turn, with no prompt")
    check_same_prompt(chosen[:-1], rejected[:-1])
    return chosen[:-1], chosen[-1:], rejected[-1:]


def check_same_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> None:
    """Raise `prompts_differ` where the turns before the two answers are not the same."""
    if chosen == rejected:
        return
    if len(chosen) != len(rejected):
        detail = f"{len(chosen)} turns before the last of chosen, {len(rejected)} of rejected"
    else:
        pairs = zip(chosen, rejected, strict=True)
        turn = next(i for i, (a, b) in enumerate(pairs, start=1) if a != b)
        detail = f"turn {turn} of {len(chosen)} before the last differs"
    raise RowProblem("prompts_differ", "rejected", detail)


def without_prompt(prompt: tuple[Message, ...], side: tuple[Message, ...]) -> tuple[Message, ...]:
    """`side` without the prompt, which some data sets repeat in front of the answer."""
    whole = len(side) > len(prompt) and side[: len(prompt)] == prompt
    return side[len(prompt) :] if whole and prompt else side
