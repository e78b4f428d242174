"""What can be wrong with a row, and where a row that was dropped stood.

A row that cannot be used is a `DroppedRow` with one of the codes of `REASONS`; nothing is ever
dropped without one. Details name types, lengths and positions, never the text of a row: preference
data holds offensive and private text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import field_validator

from align.data.records import Record
from align.errors import DataError

Reason = Literal[
    "unreadable",
    "wrong_type",
    "missing_field",
    "unsupported_content",
    "bad_transcript",
    "prompts_differ",
    "wrong_roles",
    "empty_prompt",
    "empty_completion",
    "equal",
    "swapped_duplicate",
    "bad_unicode",
    "bad_score",
    "control_tokens",
    "template_mismatch",
    "too_long",
    "equal_after_cut",
    "too_few_completions",
    "not_judged",
    "tie",
    "small_margin",
    "best_lost",
    "failed",
    "inconsistent",
    "too_few_visits",
    "wrong_answer",
    "disagreement",
    "uncertain",
    "not_drawn",
    "unchanged",
    "degenerate",
    "left_out",
    "reader_failed",
]

REASONS: Mapping[Reason, str] = {
    "unreadable": "the line cannot be parsed: broken JSON or CSV, bytes that are no UTF-8, a key "
    "given twice",
    "wrong_type": "a field holds another type than text or messages, or mixes the two in one row",
    "missing_field": "a field that the format needs is absent or null",
    "unsupported_content": "a message carries a tool call or reasoning besides its text, or "
    "a picture stands where model or format have no place for one",
    "bad_transcript": "a transcript does not open with a Human or end with an Assistant turn",
    "prompts_differ": "chosen and rejected do not continue the same prompt",
    "wrong_roles": "unknown role, misplaced system turn, prompt that does not end with a question, "
    "completion that is not one assistant turn, or roles that the chat template refuses",
    "empty_prompt": "the prompt, or one of its user or assistant turns, is empty or white space",
    "empty_completion": "chosen or rejected is empty or white space",
    "equal": "chosen and rejected are the same text",
    "swapped_duplicate": "an earlier row holds the same pair with the labels the other way round",
    "bad_unicode": "a lone surrogate: text that no UTF-8 file can hold",
    "bad_score": "a score, preference, margin or token weight that is no finite number, is out of "
    "range or has the wrong length",
    "control_tokens": "content spells a special token of the tokenizer",
    "template_mismatch": "the rendered prompt is no prefix of the rendered conversation, or the "
    "content cannot be told apart from the template's own text",
    "too_long": "more tokens than data.max_length, also after the allowed cut, or more characters "
    "than the selection allows",
    "equal_after_cut": "chosen and rejected are the same tokens, after the cut where there is one",
    "too_few_completions": "a prompt has fewer completions than its selection rule needs",
    "not_judged": "a verdict or score that the selection rule needs was not asked for, or failed",
    "tie": "the judge finds neither completion better",
    "small_margin": "the completions are closer than the selection's min_margin",
    "best_lost": "the best of a tournament lost against the worst",
    "failed": "a model or judge gave no usable answer for it; the detail says why",
    "inconsistent": "the judge's verdicts differ between the orders or rounds it was asked in",
    "too_few_visits": "the search visited one of the steps less often than min_visits",
    "wrong_answer": "the answer that the search ended with is wrong, so its steps are not trusted",
    "disagreement": "the estimator prefers the other completion than the reward does",
    "uncertain": "the estimator is less sure of it than of the pairs that were kept",
    "not_drawn": "the sampling of reliable pairs left it out",
    "unchanged": "the expert found nothing to correct",
    "degenerate": "the response repeats itself",
    "left_out": "the recipe's own reader gave None for it",
    "reader_failed": "the recipe's own reader raised an error on it",
}

assert set(REASONS) == set(get_args(Reason))


class RowProblem(DataError):
    """One row that cannot be used, before it is known where the row stands."""

    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(f"{field}: {reason} ({detail})")
        self.reason: Reason = reason
        self.field = field
        self.detail = detail


class DroppedRow(Record):
    """Where a row was dropped and why."""

    source: str
    row: int
    field: str
    reason: str
    detail: str

    @classmethod
    def of(cls, problem: RowProblem, source: str, row: int) -> DroppedRow:
        """`problem`, now that its place is known."""
        return cls(
            source=source,
            row=row,
            field=problem.field,
            reason=problem.reason,
            detail=problem.detail,
        )

    @field_validator("reason")
    @classmethod
    def _known_reason(cls, value: str) -> str:
        if value not in REASONS:
            raise ValueError(f"unknown reason code {value!r}")
        return value

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}, {self.field}: {self.reason} ({self.detail})"


# What a source yields: where the row stands, and the row or what keeps it from being one.
RawRow = tuple[str, int, Mapping[str, Any] | RowProblem]
