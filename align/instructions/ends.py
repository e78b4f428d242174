"""Kinds about how an answer begins and ends."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.instructions.base import Instruction


class EndChecker(Instruction):
    """The answer ends with a given phrase, in any case; a quotation mark may stand behind it."""

    kind: Literal["startend:end_checker"] = "startend:end_checker"
    """Which kind."""
    end_phrase: str = Field(min_length=1)
    """What it ends with."""
    phrasings: ClassVar = (
        "End your answer with exactly these words, and write nothing behind them: {end_phrase}",
        "The very last words of your answer must be: {end_phrase}",
    )

    def _holds(self, answer: str) -> bool:
        ending = self.end_phrase.strip().lower()
        return answer.strip().strip('"').lower().endswith(ending)

    def demanded(self) -> tuple[str, ...]:
        """The phrase."""
        return (self.end_phrase,)


class Quotation(Instruction):
    """Straight double quotation marks around the whole answer."""

    kind: Literal["startend:quotation"] = "startend:quotation"
    """Which kind."""
    phrasings: ClassVar = (
        "Put your whole answer in double quotation marks.",
        "Begin and end your answer with a double quotation mark.",
    )

    def _holds(self, answer: str) -> bool:
        text = answer.strip()
        return len(text) > 1 and text[0] == '"' == text[-1]
