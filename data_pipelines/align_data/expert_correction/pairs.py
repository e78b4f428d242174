"""The pairs of one corrected response, and the reasons why one is not made.

    gt_vs_gen    ground truth over response, all weights 1
    rev_vs_gen   revision over response, tokens weighted by the severity of their sentence's error
    gt_img       ground truth under the picture over the same under a degraded one, all weights 1
    rev_img      revision likewise, tokens weighted by whether the error was one of seeing

All weights are written out, the ones too: a trainer reads a column only where every row has it.
The anchors of OPA-DPO are terms of the loss on these rows, not rows. Their sign differs between the
paper (ground truth and revision are both pushed up) and the authors' program (the revision down).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from align.data.built import SpanWeight
from align.data.images import Degraded
from align.data.messages import Message, Text
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import RowProblem
from align.data.prompts import Prompt
from align.data.records import content_id
from align_data.expert_correction.report import RIGHT, Report
from align_data.expert_correction.revise import Revision
from align_data.expert_correction.settings import IMAGE_KINDS, ExpertCorrectionSettings, PairKind
from align_data.expert_correction.weights import (
    Encoder,
    image_spans,
    image_weight,
    spans,
    token_weights,
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Sides:
    """A pair before its provenance.

    Attributes:
        pair: with token weights.
        chosen_spans: of the chosen text's characters; None where all weights are 1.
        rejected_spans: likewise.
    """

    pair: PreferencePair
    chosen_spans: tuple[SpanWeight, ...] | None
    rejected_spans: tuple[SpanWeight, ...] | None


class PairMaker:
    """Makes the pairs of one response.

    Args:
        settings: the recipe's node.
        encoder: of the policy that will be trained.
    """

    def __init__(self, settings: ExpertCorrectionSettings, encoder: Encoder) -> None:
        self.settings = settings
        self.encoder = encoder

    def make(
        self, kind: PairKind, prompt: Prompt, response: str, truth: str | None, revision: Revision
    ) -> Sides:
        """One pair.

        Raises:
            RowProblem: with the reason why there is none.
        """
        if kind in IMAGE_KINDS and prompt.images is None:
            raise RowProblem("unsupported_content", kind, "the prompt shows no picture")
        if revision.report is None:
            calls = f"{revision.attempts} call{'s' if revision.attempts > 1 else ''}"
            raise RowProblem("failed", "expert", f"{revision.failure} after {calls}")
        match kind:
            case "gt_vs_gen":
                return self._of_truth(prompt, response, truth)
            case "rev_vs_gen":
                return self._of_revision(prompt, response, revision.report)
            case "gt_img":
                return self._of_seen_truth(prompt, truth)
            case "rev_img":
                return self._of_seen_revision(prompt, response, revision.report)

    def _of_truth(self, prompt: Prompt, response: str, truth: str | None) -> Sides:
        if truth is None:
            raise RowProblem("missing_field", "solution", "no ground truth, so no gt_vs_gen")
        pair = row(prompt, truth, response)
        check_pair(pair)
        return Sides(pair.model_copy(update=self._ones(prompt, truth, response)), None, None)

    def _ones(self, prompt: Prompt, chosen: str, rejected: str) -> dict[str, tuple[float, ...]]:
        return {
            f"{side}_token_weight": (1.0,) * len(self.encoder.answer_ids(prompt.prompt, text))
            for side, text in (("chosen", chosen), ("rejected", rejected))
        }

    def _of_seen_truth(self, prompt: Prompt, truth: str | None) -> Sides:
        if truth is None:
            raise RowProblem("missing_field", "solution", "no ground truth, so no gt_img")
        pair = self._seen(prompt, truth)
        return Sides(pair.model_copy(update=self._ones(prompt, truth, truth)), None, None)

    def _of_seen_revision(self, prompt: Prompt, response: str, report: Report) -> Sides:
        revised = self._revised(response, report)
        pair = self._seen(prompt, revised)
        of_rev = image_spans(report, self.settings)
        weight = token_weights(self.encoder, prompt.prompt, revised, of_rev, at_end=None)
        weights = {"chosen_token_weight": weight, "rejected_token_weight": weight}
        return Sides(pair.model_copy(update=weights), of_rev, of_rev)

    def _seen(self, prompt: Prompt, text: str) -> PreferencePair:
        """`text` under the picture over itself under a degraded one, the same for both kinds."""
        assert prompt.images is not None
        # A row's own, whatever the order of the rows; both kinds of a question lose the same.
        seed = int(content_id(list(prompt.images), "degraded")[:6], 16)
        degraded = Degraded(share=self.settings.degraded_share, seed=seed)
        pair = row(prompt, text, text).model_copy(update={"rejected_images": degraded})
        check_pair(pair)
        return pair

    def _revised(self, response: str, report: Report) -> str:
        revised = report.revised
        if revised == response:
            raise RowProblem(
                "unchanged", "revision", f"{len(report.sentences)} sentences, all kept"
            )
        if revised.strip():
            check_degenerate(revised, "revision", self.settings.max_word_repeats)
        return revised

    def _of_revision(self, prompt: Prompt, response: str, report: Report) -> Sides:
        revised = self._revised(response, report)
        pair = row(prompt, revised, response)
        check_pair(pair)
        of_gen, of_rev = spans(report, self.settings)
        weights = {
            "chosen_token_weight": token_weights(
                self.encoder, prompt.prompt, revised, of_rev, at_end=None
            ),
            "rejected_token_weight": token_weights(
                self.encoder, prompt.prompt, response, of_gen, at_end=0.0
            ),
        }
        return Sides(pair.model_copy(update=weights), of_rev, of_gen)


def check_degenerate(text: str, at: str, max_word_repeats: int) -> None:
    """Raise where a text runs in circles.

    Raises:
        RowProblem: its last sentence stands twice in a row, or its last word occurs too often.
    """
    sentences = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    if len(sentences) > 1 and sentences[-1] == sentences[-2]:
        raise RowProblem("degenerate", at, "the last sentence stands twice in a row")
    words = text.split()
    count = words.count(words[-1]) if words else 0
    if count > max_word_repeats:
        raise RowProblem("degenerate", at, f"the last word occurs {count} times")


def row(prompt: Prompt, chosen: str, rejected: str) -> PreferencePair:
    """The bare pair: plain behind a plain prompt, else one assistant turn each."""

    def written(text: str) -> Text:
        if isinstance(prompt.prompt, str):
            return text
        return (Message(role="assistant", content=text),)

    return PreferencePair(
        prompt=prompt.prompt,
        chosen=written(chosen),
        rejected=written(rejected),
        images=prompt.images,
        group_id=prompt.group_id,
        source=prompt.source,
        row=prompt.row,
    )


def errors_found(report: Report) -> int:
    """Sentences that the expert does not call right."""
    return sum(sentence.score < RIGHT for sentence in report.sentences)


def recorded(revision: Revision, settings: ExpertCorrectionSettings) -> dict[str, Any]:
    """A revision as JSON, with the weights of image pairs."""
    report = revision.report
    if report is None:
        return {
            "status": "error",
            "attempts": revision.attempts,
            "failure": revision.failure,
            "detail": revision.detail,
        }
    return {
        "status": "ok",
        "attempts": revision.attempts,
        "revised": report.revised,
        "added": report.added,
        "image_description": report.description,
        "sentences": [
            {**asdict(sentence), "image_weight": image_weight(sentence, settings)}
            for sentence in report.sentences
        ],
    }


def responses_of(
    prompt: Prompt, truth: str | None, revised: Sequence[str], generated: Sequence[str]
) -> list[dict[str, Any]]:
    """What the alignment learns (gt, rev), and what it is compared with (gen), as JSON."""
    bare = prompt.model_dump(mode="json", include={"prompt", "images", "source", "row"})
    by_kind = {"gt": [] if truth is None else [truth], "rev": revised, "gen": generated}
    return [
        {**bare, "response": text, "kind": kind}
        for kind, texts in by_kind.items()
        for text in texts
    ]
