"""The two readings of an answer: as it is, and without what chat models wrap around it.

Source: arXiv:2311.07911, section 3: the loose reading takes away the first line ("Sure, here it
is:"), the last line ("Hope it helps."), Markdown's asterisks, or any of these together: eight
texts, and one that passes will do.
"""

from __future__ import annotations

from align.instructions.base import Instruction


def met_loosely(instruction: Instruction, answer: str) -> bool:
    """Whether the answer, or what is left of it without its wrapping, meets the instruction.

    Raises:
        MachineError: as `Instruction.met`.
    """
    return any(instruction.met(text) for text in readings(answer))


def readings(answer: str) -> tuple[str, ...]:
    """The answer as it is, and seven texts with less, without repetitions.

    Lines are what line feeds part; a text that has lost one is stripped of the space around it.
    """
    lines = answer.split("\n")
    whole = (answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return tuple(dict.fromkeys((*whole, *(text.replace("*", "") for text in whole))))
