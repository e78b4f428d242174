"""From the scores of sentences to weights of tokens.

A sentence's weight goes to all its characters, in the response (rejected) and in the revision
(chosen). Tokens get theirs by where they stand in the whole text: the largest weight of the
sentences they touch, and between two sentences that of the one before. The end token of the
revision takes the weight of the last token, that of the response 0.

Differs from the authors' program, which encodes sentence by sentence and joins the tokens: those
are not the tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from align.data.built import SpanWeight
from align.data.messages import Text
from align.data.problems import RowProblem
from align_data.expert_correction.report import Report, Sentence
from align_data.expert_correction.settings import ExpertCorrectionSettings


class Encoder(Protocol):
    """What a text's tokens are: every `Writer` is one, and `LocalTokens` is without a model."""

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        """What training sees before an answer to `prompt`."""
        ...

    def answer_ids(self, prompt: Text, answer: str) -> tuple[int, ...]:
        """A whole answer as training encodes it, the end token included."""
        ...

    def text(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`."""
        ...


def severity_weight(sentence: Sentence, settings: ExpertCorrectionSettings) -> float:
    """By the sentence's score."""
    by = settings.severity
    return {4: by.right, 3: by.minor, 2: by.substantial, 1: by.wrong}[sentence.score]


def image_weight(sentence: Sentence, settings: ExpertCorrectionSettings) -> float:
    """By the kind of the sentence's error."""
    return settings.image_error_weight if sentence.error_type == "image recognition" else 1.0


def spans(
    report: Report, settings: ExpertCorrectionSettings
) -> tuple[tuple[SpanWeight, ...], tuple[SpanWeight, ...]]:
    """Severity weights of the response's and of the revision's characters."""
    of_gen: list[SpanWeight] = []
    of_rev: list[SpanWeight] = []
    for sentence in report.sentences:
        weight = severity_weight(sentence, settings)
        start, end = sentence.span_gen
        of_gen.append(SpanWeight(start=start, end=end, weight=weight))
        if sentence.span_rev is not None:
            start, end = sentence.span_rev
            of_rev.append(SpanWeight(start=start, end=end, weight=weight))
    if report.span_added is not None:
        start, end = report.span_added
        of_rev.append(SpanWeight(start=start, end=end, weight=1.0))
    return tuple(of_gen), tuple(of_rev)


def image_spans(report: Report, settings: ExpertCorrectionSettings) -> tuple[SpanWeight, ...]:
    """Weights of the revision's characters in image pairs, which have it on both sides."""
    found = [
        SpanWeight(start=one.span_rev[0], end=one.span_rev[1], weight=image_weight(one, settings))
        for one in report.sentences
        if one.span_rev is not None
    ]
    if report.span_added is not None:
        start, end = report.span_added
        found.append(SpanWeight(start=start, end=end, weight=1.0))
    return tuple(found)


def token_weights(
    encoder: Encoder,
    prompt: Text,
    answer: str,
    weights: Sequence[SpanWeight],
    *,
    at_end: float | None,
) -> tuple[float, ...]:
    """One weight per token of `answer`, the end token included.

    Args:
        encoder: of the policy that will be trained.
        prompt: what `answer` answers.
        answer: the whole text.
        weights: of its characters, in order and without overlap.
        at_end: of the end token; None takes the weight of the last token before it.

    Raises:
        RowProblem: prompt or answer cannot be used, or the tokens do not spell the answer.
    """
    *ids, _ = encoder.answer_ids(prompt, answer)
    behind = encoder.prompt_ids(prompt)[-1]
    found: list[float] = []
    for start, end in token_spans(encoder, ids, behind, answer):
        touched = [one.weight for one in weights if one.start < end and start < one.end]
        before = [one.weight for one in weights if one.end <= start]
        found.append(max(touched) if touched else before[-1] if before else weights[0].weight)
    return (*found, found[-1] if at_end is None else at_end)


def token_spans(
    encoder: Encoder, ids: Sequence[int], behind: int, answer: str
) -> list[tuple[int, int]]:
    """Characters [start, end) of `answer` that each of `ids` spells.

    Tokens that are parts of one character all have the whole of it.

    Raises:
        RowProblem: the ids do not spell the answer.
    """
    whole = encoder.text(ids, behind)
    # Chat templates trim outer white space, or write some before an answer.
    lead = len(answer) - len(answer.lstrip()) - (len(whole) - len(whole.lstrip()))
    found: list[tuple[int, int]] = []
    at, first, before = 0, 0, behind
    for k in range(len(ids)):
        piece = encoder.text(ids[first : k + 1], before)
        if piece and whole.startswith(piece, at):
            span = (max(lead + at, 0), min(max(lead + at + len(piece), 0), len(answer)))
            found += [span] * (k + 1 - first)
            at, first, before = at + len(piece), k + 1, ids[k]
    if whole.strip() != answer.strip() or len(found) < len(ids):
        raise RowProblem(
            "template_mismatch", "token_weight", f"{len(ids)} tokens that do not spell the text"
        )
    return found
