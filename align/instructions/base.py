"""What an instruction is whose fulfilment a program can check.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models",
arXiv:2311.07911. The kinds and the names of their settings are those of its public data, so that a
row of it reads as it is. Where the paper leaves the reading of a kind open, ours is the one that
the published scores were made with; each kind says where that surprises.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from align.node import Node

Relation = Literal["less than", "at least"]


class Instruction(Node):
    """One kind of instruction, with its settings."""

    kind: Any  # a Literal in every child
    """Which one, as the public data call it: group:name."""
    phrasings: ClassVar[tuple[str, ...]]
    """English sentences that state it, with fields of `said` in braces."""

    def met(self, answer: str) -> bool:
        """Whether an answer, as it is, does what the instruction wants; an empty one never does.

        Raises:
            MachineError: the kind needs a package that is not installed.
        """
        return bool(answer.strip()) and self._holds(answer)

    def _holds(self, answer: str) -> bool:
        """The check itself; the answer is not blank."""
        raise NotImplementedError

    def described(self, phrasing: int = 0) -> str:
        """An English sentence that states the instruction.

        Args:
            phrasing: which of `phrasings`.

        Raises:
            IndexError: there are fewer.
        """
        return self.phrasings[phrasing].format(**self.said())

    def said(self) -> dict[str, str]:
        """What stands in the sentences for the settings."""
        settings = self.model_dump(exclude={"kind"})
        return {name: _said(value) for name, value in settings.items()}

    def demanded(self) -> tuple[str, ...]:
        """Texts that the answer must, or may, take over literally from the prompt."""
        return ()


def compared(found: int, relation: Relation, wanted: int) -> bool:
    """`found` against `wanted` as the public data say it."""
    return found < wanted if relation == "less than" else found >= wanted


def _said(value: object) -> str:
    if isinstance(value, tuple | list):
        return listed([f'"{word}"' for word in value])  # pyright: ignore[reportUnknownVariableType]
    return str(value)


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
