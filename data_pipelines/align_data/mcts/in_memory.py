"""The search without a recipe: a loaded model and questions in, step pairs out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from align.data.built import BuiltPair
from align.data.messages import Message, Text
from align.data.questions import Question
from align.data.row_report import RowReport
from align.policies.token_writer import InProcessWriter
from align_data.mcts.settings import Search, XieSettings
from align_data.mcts.verify import KnownAnswerVerifier, Verifier
from align_data.mcts.work import MCTSWork

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Text that is continued as it is, or turns that go through the chat template.
Prompt: TypeAlias = Text | Sequence[Mapping[str, str]]
SOURCE = "memory"


@dataclass
class SearchReport(RowReport):
    """The count of candidates, and of what the search did.

    Attributes:
        counts: tokens drawn, simulations, nodes and so on, of all trees.
    """

    counts: Counter[str] = field(default_factory=Counter[str])

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"counts": dict(sorted(self.counts.items()))}


def mcts_step_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question | tuple[Prompt, str | None]],
    *,
    settings: Search | Mapping[str, Any] | None = None,
    verify: Verifier | None = None,
    seed: int = 0,
) -> tuple[list[BuiltPair], SearchReport]:
    """Searches an answer to each question; sibling steps of its tree become pairs.

    Nothing is written to disk, and nothing resumed: for long searches there is the stage `mcts`.
    The model is given back as it came.

    Args:
        model: on its device; it draws the steps and judges them.
        tokenizer: of the model.
        questions: (prompt, answer) or `Question`. The prompt is a text or a list of
            {"role", "content"}; the answer is what `verify` compares with, None where unknown.
        settings: of the search (`XieSettings`, or `AgentQSettings`), or the keys of `XieSettings`.
        verify: whether an answer is right; None compares the last number of a response with the
            known answer.
        seed: of all draws; the same seed gives the same pairs.

    Returns:
        The pairs, and the report of all candidates: read = kept + dropped, each dropped one with
        its reason and the 1-based number of its question.

    Raises:
        ValidationError: a setting is unknown or has a bad value.
        ValueError: a question is neither of the two.
    """
    if not isinstance(settings, Search):
        settings = XieSettings(**(settings or {}))
    work = MCTSWork(
        settings,
        InProcessWriter(model, tokenizer),
        verify or KnownAnswerVerifier(),
        seed=seed,
        config_hash=settings.config_hash,
    )
    asked = [_question(row, given) for row, given in enumerate(questions, start=1)]
    pairs: list[BuiltPair] = []
    report = SearchReport()
    for start in range(0, len(asked), settings.chunk):
        for built in work(asked[start : start + settings.chunk]):
            pairs += built.pairs
            for _ in built.pairs:
                report.keep()
            for lost in built.dropped:
                report.drop(lost)
            report.counts.update(built.counts)
    return pairs, report


def _question(row: int, given: Question | tuple[Prompt, str | None]) -> Question:
    if isinstance(given, Question):
        return given
    if not isinstance(given, tuple) or len(given) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"question {row} is neither a Question nor a tuple (prompt, answer).")
    prompt, answer = given
    if not isinstance(prompt, str):
        prompt = tuple(Message.model_validate(turn) for turn in prompt)
    return Question(prompt=prompt, answer=answer, source=SOURCE, row=row)
