"""Kinds that put several things into one answer: two answers, the prompt before the answer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction


class TwoResponses(Instruction):
    """Two different answers, parted by ******; one without text in the middle fails."""

    kind: Literal["combination:two_responses"] = "combination:two_responses"
    """Which kind."""
    phrasings: ClassVar = (
        "Give two different answers, and only answers, with ****** between them.",
        "Write two answers that differ from each other, parted by six asterisks: ******",
    )

    def _holds(self, answer: str) -> bool:
        parts = [part.strip() for part in answer.split("******")]
        if not all(parts[1:-1]):
            return False
        found = [part for part in parts if part]
        return len(found) == 2 and found[0] != found[1]


class RepeatPrompt(Instruction):
    """The answer begins with the request, word for word, in any case."""

    kind: Literal["combination:repeat_prompt"] = "combination:repeat_prompt"
    """Which kind."""
    prompt_to_repeat: str = Field(min_length=1)
    """The request."""
    phrasings: ClassVar = (
        "Before you answer, repeat this request word for word: {prompt_to_repeat}",
        "Write the following request down once more without a change, and then your answer: "
        "{prompt_to_repeat}",
    )

    def _holds(self, answer: str) -> bool:
        return answer.strip().lower().startswith(self.prompt_to_repeat.strip().lower())

    def demanded(self) -> tuple[str, ...]:
        """The request."""
        return (self.prompt_to_repeat,)
