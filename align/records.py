"""Rows on disk with their provenance, what can be wrong with one, and the count of what was kept.

Importing this module loads pydantic and nothing heavier. A row that cannot be used is a
`DroppedRow` with one of the codes of `REASONS`; nothing is ever dropped without one. Details name
types, lengths and positions, never the text of a row: preference data holds offensive and private
text.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]

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
}
assert set(REASONS) == set(get_args(Reason))

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class RowProblem(DataError):
    """One row that cannot be used, before it is known where the row stands."""

    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(f"{field}: {reason} ({detail})")
        self.reason: Reason = reason
        self.field = field
        self.detail = detail


class Record(BaseModel):
    """A frozen row that accepts no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


Text = str | tuple[Message, ...]
# A picture by its place: a file, or the file itself as a data URI (`data:image/png;base64,...`).
ImageRef = str


class Degraded(Record):
    """What becomes of a row's own pictures on the rejected side, in place of other pictures.

    Yang et al. 2025, OPA-DPO (arXiv 2501.09695), and the program of its authors.

    Attributes:
        method: "pixels" sets random pixels, the same in all channels, to the picture's mean colour.
        share: of the pixels; floor(share * height * width) of them.
        seed: of their choice; the policy and every role see the same picture.
    """

    method: Literal["pixels"] = "pixels"
    share: float = Field(default=0.3, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)


def content_id(*parts: object) -> str:
    """16 hex characters of the sha256 of `parts` in canonical JSON."""
    canonical = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def prompt_id(prompt: Text) -> str:
    """16 hex characters of a prompt's text, whatever else its row holds."""
    return content_id(
        prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
    )


class Prompt(Record):
    """What a policy is asked to continue."""

    prompt: Text
    images: tuple[ImageRef, ...] | None = None
    group_id: str | None = None
    source: str
    row: int

    @property
    def id(self) -> str:
        """16 hex characters of the content, whatever file it came from."""
        return content_id(self.model_dump(exclude={"source", "row"}))

    @model_serializer(mode="wrap")
    def _without_no_images(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_no_images(write(self))


def without_no_images(written: dict[str, Any]) -> dict[str, Any]:
    """A row as it was written before rows could have pictures, where it has none."""
    if written.get("images", ...) is None:
        del written["images"]
    return written


class Completion(Record):
    """One sampled continuation of a prompt; `sample` numbers the continuations of one prompt."""

    prompt: Text
    completion: Text
    policy: str
    sample: int = Field(ge=0)
    group_id: str | None = None
    source: str
    row: int


class Judged(Completion):
    """A continuation with the score that `judge` gave it, in the judge's own units."""

    judge: str
    score: float


class JudgedPrompt(Record):
    """All that was sampled for one prompt in one round, and what a judge said about it.

    Attributes:
        prompt: what the completions continue.
        group_id: rows of one question share it.
        source: the file, or hub id@revision, that the prompt is from.
        row: 1-based number of the prompt in `source`.
        round: of the loop, from 1; 0 outside of one.
        sampler: identity of the policy that wrote the completions.
        completions: K texts.
        scores: one per completion, in the judge's own units; None where there is none.
        preferences: P[i][j] is P(completion i beats completion j); P[i][j] + P[j][i] = 1, 1/2 on
            the diagonal, None where the comparison was not asked or failed.
        failures: what could not be sampled or judged, each with its reason.
        judge: its identity.
        calls: questions that the judge was asked.
    """

    prompt: Text
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)
    round: int = Field(default=0, ge=0)
    sampler: str
    completions: tuple[str, ...]
    scores: tuple[float | None, ...] | None = None
    preferences: tuple[tuple[float | None, ...], ...] | None = None
    failures: tuple[str, ...] = ()
    judge: str
    calls: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_number_per_completion(self) -> JudgedPrompt:
        k = len(self.completions)
        if self.scores is not None and len(self.scores) != k:
            raise ValueError(f"{len(self.scores)} scores for {k} completions")
        p = self.preferences
        if p is None:
            return self
        if len(p) != k or any(len(row) != k for row in p):
            raise ValueError(f"preferences for {k} completions must be {k} x {k}")
        for i in range(k):
            for j in range(i, k):
                there, back = p[i][j], p[j][i]
                if (there is None) != (back is None):
                    raise ValueError(f"P[{i}][{j}] and P[{j}][{i}] must both be known, or neither")
                if there is None or back is None:
                    if i == j:
                        raise ValueError(f"P[{i}][{i}] is 1/2 and needs no judge")
                elif not (0.0 <= there <= 1.0 and abs(there + back - 1.0) < 1e-9):
                    raise ValueError(
                        f"P[{i}][{j}] = {there:g} and P[{j}][{i}] = {back:g} must be in [0, 1] and "
                        "add up to 1"
                    )
        return self


class PreferencePair(Record):
    """Two completions of one prompt, the better one first.

    Prompt and completions are all plain text or all messages. The optional columns keep the
    annotator's own units; token weights count completion tokens, the end token included.

    Attributes:
        prompt: what both completions continue.
        chosen: the preferred completion; in messages exactly one assistant turn.
        rejected: the other one.
        chosen_score: the annotator's number for `chosen`.
        rejected_score: the annotator's number for `rejected`.
        preference: P(chosen beats rejected), in [0, 1].
        margin: how much better `chosen` is.
        chosen_token_weight: one weight per token of `chosen`.
        rejected_token_weight: one weight per token of `rejected`.
        chosen_ends: False where `chosen` is the beginning of an answer, such as the steps of a
            search so far: no end token is trained behind it. None means True.
        rejected_ends: the same for the other side.
        prompt_ids: the tokens that the pair was drawn with; given all three, exactly these are
            trained on, and a tokenizer that does not read them as the texts is refused.
        chosen_ids: the end token included, where the side has one.
        rejected_ids: the same for the other side.
        images: what the prompt shows, before the words of its first user turn.
        rejected_images: what it shows on the rejected side, where that is something else; both
            completions may then be the same.
        pair_kind: which of the pairs of one question this is; OPA-DPO's loss depends on it.
        group_id: pairs of one question, tree or document share it.
        source: the file, or hub id@revision.
        row: 1-based number of the row in `source`.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_score: float | None = None
    rejected_score: float | None = None
    preference: float | None = Field(default=None, ge=0.0, le=1.0)
    margin: float | None = None
    chosen_token_weight: tuple[float, ...] | None = None
    rejected_token_weight: tuple[float, ...] | None = None
    chosen_ends: bool | None = None
    rejected_ends: bool | None = None
    prompt_ids: tuple[int, ...] | None = None
    chosen_ids: tuple[int, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None
    images: tuple[ImageRef, ...] | None = None
    rejected_images: tuple[ImageRef, ...] | Degraded | None = None
    pair_kind: str | None = None
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> PreferencePair:
        if len({isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)}) != 1:
            raise ValueError("prompt, chosen and rejected must be all text or all messages")
        ids = (self.prompt_ids, self.chosen_ids, self.rejected_ids)
        if len({side is None for side in ids}) != 1:
            raise ValueError("prompt_ids, chosen_ids and rejected_ids must be given all, or none")
        other = self.rejected_images
        if other is not None and self.images is None:
            raise ValueError("rejected_images without images")
        if self.images == () or other == ():
            raise ValueError("images and rejected_images are left out where there are none")
        if isinstance(other, tuple) and len(other) != len(self.images or ()):
            raise ValueError("rejected_images must be as many as images: both share the prompt")
        return self

    @property
    def is_conversational(self) -> bool:
        """True where the row holds messages, False where it holds plain text."""
        return not isinstance(self.prompt, str)

    @property
    def id(self) -> str:
        """16 hex characters of the content, whatever file it came from."""
        content = self.model_dump(include=set(PreferencePair.model_fields) - {"source", "row"})
        # A column that came later does not rename the rows that do not have it.
        return content_id({k: v for k, v in content.items() if v is not None or k not in _LATER})


_LATER = (
    "chosen_ends",
    "rejected_ends",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "images",
    "rejected_images",
    "pair_kind",
)


class RowPolicy(BaseModel):
    """What to do with rows that cannot be used as they are; part of the recipe's data section.

    "drop" keeps the row out and counts it, "error" stops at the first one. Rows of the wrong shape
    (`unreadable`, `wrong_type`, `missing_field`, ...) are always dropped and counted.

    Attributes:
        max_length: tokens of prompt and completion together; None means no limit.
        on_too_long: "cut_prompt" takes tokens from the left of the prompt and keeps its BOS;
            "cut_completion" takes them from the right, so that side has no end token left.
        min_completion_tokens: a completion that a cut leaves shorter than this is too long.
        on_equal: chosen and rejected the same, as text or as tokens.
        on_empty: an empty prompt, turn or completion.
        on_wrong_roles: roles that make no question-and-answer.
        on_bad_unicode: "replace" puts U+FFFD where a lone surrogate stood.
        on_control_tokens: "split" encodes a special token's spelling as ordinary tokens.
        on_swapped_duplicate: the same pair again with the labels the other way round; "keep" is
            for annotations in which two people may disagree.
        max_dropped: fraction of the rows read that may be dropped before it is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_length: int | None = Field(default=1024, ge=16)
    on_too_long: Literal["drop", "cut_prompt", "cut_completion", "error"] = "drop"
    min_completion_tokens: int = Field(default=1, ge=1)
    on_equal: Literal["drop", "error"] = "drop"
    on_empty: Literal["drop", "error"] = "drop"
    on_wrong_roles: Literal["drop", "error"] = "drop"
    on_bad_unicode: Literal["drop", "replace", "error"] = "drop"
    on_control_tokens: Literal["split", "drop", "error"] = "split"
    on_swapped_duplicate: Literal["keep", "drop", "error"] = "drop"
    max_dropped: float = Field(default=0.05, ge=0.0, le=1.0)

    def obey(self, dropped: DroppedRow) -> None:
        """Raise where the policy for this reason is to stop at the first such row.

        Raises:
            DataError: naming the row and the key of the recipe.
        """
        switch = _SWITCHES.get(dropped.reason)
        if switch is not None and getattr(self, switch) == "error":
            raise DataError(
                f"{dropped}. data.{switch} is 'error', so the first such row stops the run: mend "
                f"the row, or choose another policy for data.{switch}."
            )


_SWITCHES: dict[str, str] = {
    "too_long": "on_too_long",
    "equal": "on_equal",
    "equal_after_cut": "on_equal",
    "empty_prompt": "on_empty",
    "empty_completion": "on_empty",
    "wrong_roles": "on_wrong_roles",
    "bad_unicode": "on_bad_unicode",
    "control_tokens": "on_control_tokens",
    "swapped_duplicate": "on_swapped_duplicate",
}


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


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())


@dataclass
class RowReport:
    """The count of rows: `read == kept + sum(dropped.values())` at every moment.

    Attributes:
        read: rows seen.
        kept: rows that can still be trained on.
        dropped: rows kept out, by reason code.
        rows: every dropped row.
        notes: what was done to kept rows, by name (`boundary_merge`, `cut_prompt`, ...).
        ignored_columns: columns that no reader uses, each named once.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    rows: list[DroppedRow] = field(default_factory=list[DroppedRow])
    notes: Counter[str] = field(default_factory=Counter[str])
    ignored_columns: list[str] = field(default_factory=list[str])

    def keep(self) -> None:
        """Count one more row, kept."""
        self.read += 1
        self.kept += 1

    def drop(self, row: DroppedRow) -> None:
        """Count one more row, dropped."""
        self.read += 1
        self.dropped[row.reason] += 1
        self.rows.append(row)

    def drop_kept(self, row: DroppedRow) -> None:
        """Move a row that was counted as kept to the dropped ones."""
        if self.kept < 1:
            raise ValueError("drop_kept: this report has no kept row left to move")
        self.read -= 1
        self.kept -= 1
        self.drop(row)

    def ignore_columns(self, names: Sequence[str]) -> None:
        """Remember columns that are not used."""
        self.ignored_columns.extend(name for name in names if name not in self.ignored_columns)

    def merge(self, other: RowReport) -> None:
        """Add the rows of another source."""
        self.read += other.read
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.rows.extend(other.rows)
        self.notes.update(other.notes)
        self.ignore_columns(other.ignored_columns)

    def check(self, max_dropped: float) -> None:
        """Raise when too many rows were dropped, or none is left.

        Raises:
            DataError: naming the counts by reason and the first places.
        """
        lost = sum(self.dropped.values())
        if self.kept > 0 and lost <= max_dropped * self.read:
            return
        if self.read == 0:
            raise DataError(
                "No row was read: the source is empty. Check data.pairs and data.split, then run "
                "the same command again."
            )
        first = "; ".join(str(row) for row in self.rows[:3])
        what = (
            f"None of the {self.read} rows can be used"
            if self.kept == 0
            else f"{lost} of {self.read} rows ({lost / self.read:.1%}) cannot be used, over "
            f"the limit of {max_dropped:.1%}"
        )
        switches = [
            _SWITCHES[reason] for reason in REASONS if self.dropped[reason] and reason in _SWITCHES
        ]
        advice = "Mend these rows"
        if switches:
            named = ", ".join(f"data.{name}" for name in dict.fromkeys(switches))
            advice += f", choose another policy for them ({named})"
        if self.kept > 0:
            # Rounded up, so that the advised limit lets exactly these rows pass.
            enough = math.ceil(1000 * lost / self.read) / 1000
            advice += f", or set data.max_dropped to {enough:g} or more if this loss is acceptable"
        raise DataError(f"{what}: {_counts(self.dropped)}. First: {first}. {advice}.")

    def summary(self) -> str:
        """One paragraph for people."""
        parts = [f"{self.read} rows read, {self.kept} kept"]
        if self.dropped:
            parts.append(f"{sum(self.dropped.values())} dropped ({_counts(self.dropped)})")
        if self.notes:
            parts.append(f"of the kept: {_counts(self.notes)}")
        if self.ignored_columns:
            parts.append(f"unused columns: {', '.join(self.ignored_columns)}")
        return "; ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps(..., allow_nan=False)` takes."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "rows": [row.model_dump() for row in self.rows],
            "notes": dict(sorted(self.notes.items())),
            "ignored_columns": list(self.ignored_columns),
        }


def _check_unicode(text: Text, at: str) -> None:
    messages = (
        (("", text),)
        if isinstance(text, str)
        else tuple((f"[{i}].content", message.content) for i, message in enumerate(text))
    )
    for where, content in messages:
        found = LONE_SURROGATE.search(content)
        if found:
            raise RowProblem(
                "bad_unicode", at + where, f"lone surrogate at character {found.start() + 1}"
            )


def _check_prompt(prompt: Text) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowProblem("empty_prompt", "prompt", f"{len(prompt)} characters, all white space")
        return
    if not prompt:
        raise RowProblem("empty_prompt", "prompt", "no message")
    for i, message in enumerate(prompt):
        if message.role == "system" and i > 0:
            raise RowProblem("wrong_roles", f"prompt[{i}].role", "a system turn that is not first")
        if message.role in ("user", "assistant") and not message.content.strip():
            raise RowProblem("empty_prompt", f"prompt[{i}].content", f"empty {message.role} turn")
    if prompt[-1].role not in ("user", "tool"):
        raise RowProblem(
            "wrong_roles",
            f"prompt[{len(prompt) - 1}].role",
            f"the prompt ends with a {prompt[-1].role} turn, so there is nothing to answer",
        )


def _check_completion(completion: Text, at: str) -> None:
    if isinstance(completion, str):
        if not completion.strip():
            raise RowProblem(
                "empty_completion", at, f"{len(completion)} characters, all white space"
            )
        return
    if not completion:
        raise RowProblem("empty_completion", at, "no message")
    if len(completion) != 1 or completion[0].role != "assistant":
        roles = ", ".join(message.role for message in completion[:4])
        raise RowProblem(
            "wrong_roles",
            at,
            f"{len(completion)} turns ({roles}); a completion is one assistant turn",
        )
    if not completion[0].content.strip():
        raise RowProblem("empty_completion", f"{at}[0].content", "empty assistant turn")


def check_pair(pair: PreferencePair) -> None:
    """Raise the first thing that is wrong with the text of `pair`.

    Raises:
        RowProblem: `bad_unicode`, `wrong_roles`, `empty_prompt`, `empty_completion`, `equal` or
            `bad_score`.
    """
    _check_unicode(pair.prompt, "prompt")
    _check_prompt(pair.prompt)
    for at, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        _check_unicode(completion, at)
        _check_completion(completion, at)
    if pair.chosen == pair.rejected and pair.rejected_images is None:
        raise RowProblem("equal", "rejected", "the same text as chosen")
    if (pair.chosen_score is None) != (pair.rejected_score is None):
        missing = "chosen_score" if pair.chosen_score is None else "rejected_score"
        raise RowProblem("bad_score", missing, "absent, while the other side has a score")
