"""The instructions of a prompt's row, checked by a program: a judge, and a guard as a reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from align.data.messages import prompt_id
from align.errors import DataError
from align.instructions import Instruction, is_earnest, row_instructions
from align.judges.base import Answer, Answers, Asked, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.judges.table import question_of

# Raised with every change of a check that moves a score.
VERSION = 1


class InstructionsMet(JudgeNode):
    """How many of its prompt's instructions a completion follows, as IFEval checks them."""

    by: Literal["instructions"] = "instructions"
    """Who judges: checks of the row's columns instruction_id_list and kwargs."""
    count: Literal["share", "all"] = "share"
    """share: of the instructions, those that are met; all: 1 where every one is, else 0."""
    earnest: bool = False
    """Whether a completion must be a text of its own to score above 0: 5 words or more, most of
    them distinct, no four in a row copied from the prompt, but for what it asks to take over."""
    gives: ClassVar[Answers | None] = "scores"
    reads_columns: ClassVar[bool] = True

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge."""
        yield InstructionJudge(bench.row_of, count=self.count, earnest=self.earnest)


class InstructionJudge:
    """Checks completions against the instructions of their prompts' rows.

    Args:
        row_of: id of a prompt's text -> its row, with instruction_id_list and kwargs.
        count: share of the instructions that are met, or 1.0 where all are and else 0.0.
        earnest: a completion that is no text of its own scores 0.0 (`is_earnest`).
    """

    def __init__(
        self,
        row_of: Callable[[str], Asked | None],
        *,
        count: Literal["share", "all"] = "share",
        earnest: bool = False,
    ) -> None:
        self.identity = f"instructions-{VERSION}:{count}" + "+earnest" * earnest
        self._row_of = row_of
        self._count = count
        self._earnest = earnest

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """A share in [0, 1], or the reason why there is none, per item in their order.

        Raises:
            MachineError: an instruction needs a package that is not installed.
        """
        return [self._score(item) for item in items]

    def _score(self, item: Answer) -> float | JudgeFailed:
        row = self._row_of(prompt_id(item.prompt))
        if row is None:
            return JudgeFailed("no_row", "the row of this prompt is not known here")
        try:
            instructions = row_instructions(row.columns)
        except DataError as error:
            return JudgeFailed("no_instructions", f"{error} ({row.source}:{row.row})")
        met = [one.met(item.completion) for one in instructions]
        if self._earnest and not _is_earnest(
            question_of(item.prompt), item.completion, instructions
        ):
            return 0.0
        return float(all(met)) if self._count == "all" else sum(met) / len(met)


def earnest(
    prompt: Any,
    completion: str,
    instruction_id_list: Sequence[str] | None = None,
    kwargs: Sequence[Mapping[str, Any]] | None = None,
) -> float:
    """1 for a completion that is a text of its own, 0 for one that games a check.

    Where the row has instructions, what they ask to take over from the prompt may be copied.
    """
    columns = {"instruction_id_list": instruction_id_list, "kwargs": kwargs}
    instructions = row_instructions(columns) if instruction_id_list is not None else ()
    asked: str = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return float(_is_earnest(asked, completion, instructions))


def _is_earnest(asked: str, completion: str, instructions: Sequence[Instruction]) -> bool:
    demanded = [text for one in instructions for text in one.demanded()]
    return is_earnest(completion, asked, demanded)
