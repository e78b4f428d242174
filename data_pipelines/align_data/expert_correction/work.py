"""A chunk of prompts: answered by the policy, corrected by the expert, made into pairs.

Yang et al. 2025, OPA-DPO (arXiv 2501.09695), section 4 and the program of its authors. One response
with a bad report costs its own pairs and no others; in the authors' program any exception sets the
weights of the whole batch to zero.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.built import Built, BuiltPair
from align.data.completions import Completion
from align.data.messages import LONE_SURROGATE, Text
from align.data.problems import DroppedRow, RowProblem
from align.data.prompts import Prompt
from align.data.questions import Candidates, Question
from align.data.records import content_id
from align.errors import RecipeError
from align.policies.base import Failed, Policy, Sampling
from align_data.expert_correction.pairs import (
    PairMaker,
    check_degenerate,
    errors_found,
    recorded,
    responses_of,
)
from align_data.expert_correction.revise import Faulty, Reviser, Revision
from align_data.expert_correction.settings import IMAGE_KINDS, ExpertCorrectionSettings, PairKind
from align_data.expert_correction.weights import Encoder

Unit = Question | Candidates


@dataclass(frozen=True)
class _Response:
    """One response of the policy, or why there is none."""

    unit: int
    number: int
    text: str = ""
    problem: RowProblem | None = None


class ExpertCorrectionWork:
    """The pipeline's core: what becomes of each unit of a chunk.

    Args:
        settings: the recipe's node.
        expert: corrects.
        encoder: tokens of the policy that will be trained; a `Writer`, or `LocalTokens`.
        policy: answers the questions; None where all units bring their responses.
        seed: of all draws.
        config_hash: of the settings.
        round: of the loop; 0 outside of one.
    """

    def __init__(
        self,
        settings: ExpertCorrectionSettings,
        expert: Policy,
        encoder: Encoder,
        policy: Policy | None = None,
        *,
        seed: int,
        config_hash: str,
        round: int = 0,  # noqa: A002
    ) -> None:
        self.settings = settings
        self.expert = expert
        self.policy = policy
        self.seed = seed
        self.config_hash = config_hash
        self.round = round
        self._maker = PairMaker(settings, encoder)
        self._reviser = Reviser(
            expert,
            settings.expert,
            add_missing=settings.add_missing,
            seed=self._seed("expert"),
        )

    def __call__(self, units: Sequence[Unit]) -> list[Built]:
        """One `Built` per unit, in order.

        Raises:
            RecipeError: a unit is a question without responses, and there is no policy.
        """
        responses = self._responses(units)
        whole = [one for one in responses if one.problem is None]
        revisions = self._reviser.revise([_faulty(one, units[one.unit]) for one in whole])
        by_response = dict(zip(map(id, whole), revisions, strict=True))
        return [
            self._built(
                unit,
                [(one, by_response.get(id(one))) for one in responses if one.unit == number],
            )
            for number, unit in enumerate(units)
        ]

    def _responses(self, units: Sequence[Unit]) -> list[_Response]:
        """Every response of every unit, checked as far as it goes without the expert."""
        unanswered = [n for n, unit in enumerate(units) if isinstance(unit, Question)]
        drawn: dict[int, list[str | RowProblem]] = {}
        if unanswered:
            if self.policy is None:
                raise RecipeError(
                    "pipeline expert_correction: the rows bring no responses, and there is no "
                    "policy to write them. Name a policy, or give rows with responses."
                )
            prompts = [_prompt(units[n]) for n in unanswered]
            answers = self.policy.generate(
                prompts,
                self.settings.responses.samples,
                self._sampling(),
                self._seed("responses"),
            )
            for n, samples in zip(unanswered, answers, strict=True):
                drawn[n] = [_text(sample) for sample in samples]
        found: list[_Response] = []
        for n, unit in enumerate(units):
            texts = drawn[n] if isinstance(unit, Question) else unit.responses
            seen: set[str] = set()
            for number, text in enumerate(texts):
                problem = text if isinstance(text, RowProblem) else self._problem(text, seen)
                written = "" if isinstance(text, RowProblem) else text
                found.append(_Response(n, number, written, problem))
                seen.add(written)
        return found

    def _problem(self, text: str, seen: set[str]) -> RowProblem | None:
        if text in seen:
            return RowProblem("equal", "response", "an earlier response of the prompt is the same")
        if not text.strip():
            detail = f"{len(text)} characters, all white space"
            return RowProblem("empty_completion", "response", detail)
        if LONE_SURROGATE.search(text):
            return RowProblem("bad_unicode", "response", "a lone surrogate")
        try:
            check_degenerate(text, "response", self.settings.max_word_repeats)
        except RowProblem as problem:
            return problem
        return None

    def _built(self, unit: Unit, responses: Sequence[tuple[_Response, Revision | None]]) -> Built:
        counts = Counter[str]()
        pairs: list[BuiltPair] = []
        dropped: list[DroppedRow] = []
        prompt = _prompt(unit)
        for response, revision in responses:
            counts["responses"] += 1
            if revision is not None:
                self._count(revision, counts)
            for kind in self.settings.pairs:
                counts["image_pairs_left_out"] += kind in IMAGE_KINDS and unit.images is None
                try:
                    if response.problem is not None:
                        raise response.problem
                    assert revision is not None
                    pairs.append(self._pair(kind, unit, prompt, response, revision))
                except RowProblem as problem:
                    dropped.append(DroppedRow.of(problem, unit.source, unit.row))
        if not responses:
            problem = RowProblem("too_few_completions", "responses", "no response to correct")
            dropped.append(DroppedRow.of(problem, unit.source, unit.row))
        revised = [r.report.revised for _, r in responses if r is not None and r.report is not None]
        kept = [text for text in revised if not _is_degenerate(text, self.settings)]
        generated = [one.text for one, _ in responses if one.problem is None]
        return Built(
            uid=self._uid("unit", unit.id),
            read=len(pairs) + len(dropped),
            pairs=tuple(pairs),
            dropped=tuple(dropped),
            counts=dict(counts),
            record={
                "expert": self.expert.identity,
                "revisions": [
                    {"response": one.text, **recorded(revision, self.settings)}
                    for one, revision in responses
                    if revision is not None
                ],
                "responses": responses_of(prompt, unit.solution, kept, generated) if kept else [],
            },
        )

    def _count(self, revision: Revision, counts: Counter[str]) -> None:
        counts["expert_calls"] += revision.attempts
        if revision.report is None:
            counts["expert_failed"] += 1
            return
        counts["sentences"] += len(revision.report.sentences)
        counts["sentences_with_errors"] += errors_found(revision.report)

    def _pair(
        self, kind: PairKind, unit: Unit, prompt: Prompt, response: _Response, revision: Revision
    ) -> BuiltPair:
        made = self._maker.make(kind, prompt, response.text, unit.solution, revision)
        report = revision.report
        assert report is not None
        shown = () if unit.images is None else (list(unit.images),)
        return BuiltPair(
            **made.pair.model_dump(exclude_none=True),
            uid=self._uid("pair", _jsonable(unit.prompt), *shown, response.text, kind),
            pipeline="opadpo",
            round=self.round,
            pair_kind=kind,
            chosen_span_weights=made.chosen_spans,
            rejected_span_weights=made.rejected_spans,
            model=self._writer_of(unit),
            config_hash=self.config_hash,
            seed=self.seed,
            detail={
                "expert": self.expert.identity,
                "attempts": revision.attempts,
                "sentences": len(report.sentences),
                "sentences_with_errors": errors_found(report),
            },
        )

    def _writer_of(self, unit: Unit) -> str:
        if isinstance(unit, Candidates):
            return unit.policy
        assert self.policy is not None
        return self.policy.identity

    def _sampling(self) -> Sampling:
        return Sampling(**self.settings.responses.model_dump(exclude={"samples"}))

    def _seed(self, purpose: str) -> int:
        text = f"{self.seed}/expert_correction/{self.round}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _uid(self, *parts: object) -> str:
        return content_id("opadpo", self.config_hash, self.seed, self.round, *parts)


def _prompt(unit: Unit) -> Prompt:
    return Prompt(
        prompt=unit.prompt,
        images=unit.images,
        group_id=unit.group_id or _group(unit),
        source=unit.source,
        row=unit.row,
    )


def _group(unit: Unit) -> str:
    shown = () if unit.images is None else (list(unit.images),)
    return content_id(_jsonable(unit.prompt), *shown)


def _faulty(response: _Response, unit: Unit) -> Faulty:
    return Faulty(unit.prompt, response.text, unit.solution, unit.source, unit.row, unit.images)


def _jsonable(prompt: Text) -> object:
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def _text(sample: Completion | Failed) -> str | RowProblem:
    if isinstance(sample, Failed):
        return RowProblem("failed", "response", f"{sample.reason}: {sample.detail}")
    written = sample.completion
    return written if isinstance(written, str) else written[-1].content


def _is_degenerate(text: str, settings: ExpertCorrectionSettings) -> bool:
    if not text.strip():
        return True
    try:
        check_degenerate(text, "revision", settings.max_word_repeats)
    except RowProblem:
        return True
    return False
