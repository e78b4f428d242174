"""A chunk of prompts with responses, annotated together so that every model call is a full batch.

Bao et al. 2024 (arXiv 2406.11190), section 2; the program `self_ref_feedback` of its authors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from align.data.built import Built, BuiltPair
from align.data.messages import Message, Text
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import DroppedRow, Reason, RowProblem
from align.data.questions import Candidates
from align.data.records import content_id
from align.errors import RecipeError
from align.policies.base import Policy
from align.policies.writer import Writer
from align_data.self_reference.asking import Compared, Dialogue, Own
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.strength import Undecided, decide


class SelfReferenceWork:
    """The pipeline's core: what becomes of each unit of a chunk.

    Args:
        settings: the recipe's node.
        annotator: answers, criticises and chooses.
        scorer: log-probs of the annotator's weights; needed where `settings.needs_scorer`.
        seed: of all draws.
        config_hash: of the settings.
        round: of the loop; 0 outside of one.

    Raises:
        RecipeError: the settings need a scorer and there is none.
    """

    def __init__(
        self,
        settings: SelfReferenceSettings,
        annotator: Policy,
        scorer: Writer | None,
        *,
        seed: int,
        config_hash: str,
        round: int = 0,  # noqa: A002
    ) -> None:
        if settings.needs_scorer and scorer is None:
            key = "verdict: forced" if settings.verdict == "forced" else settings.strength
            raise RecipeError(
                f"pipeline self_reference: {key} needs log-probs of given texts, and the annotator "
                "gives none. Serve its weights where texts can be scored, load them in process, or "
                "write `strength: votes` and `verdict: written`."
            )
        self.settings = settings
        self.annotator = annotator
        self.seed = seed
        self.config_hash = config_hash
        self.round = round
        self._dialogue = Dialogue(settings, annotator, scorer, seed, round)

    def __call__(self, units: Sequence[Candidates]) -> list[Built]:
        """One `Built` per unit, in order."""
        counts = [Counter[str]() for _ in units]
        dropped: list[list[DroppedRow]] = [[] for _ in units]
        pairs = [
            pair
            for number, unit in enumerate(units)
            for pair in self._comparable(number, unit, dropped[number])
        ]
        owns = self._dialogue.hold(pairs, units, counts)
        built: list[list[BuiltPair]] = [[] for _ in units]
        for pair in pairs:
            made = self._made(pair, units[pair.unit], owns.get(pair.unit, ()), counts[pair.unit])
            if isinstance(made, DroppedRow):
                dropped[pair.unit].append(made)
            else:
                built[pair.unit].append(made)
        return [
            Built(
                uid=self._uid("unit", unit.id),
                read=len(built[number]) + len(dropped[number]),
                pairs=tuple(built[number]),
                dropped=tuple(dropped[number]),
                counts=dict(counts[number]),
                record=self._record(
                    unit, [pair for pair in pairs if pair.unit == number], owns.get(number, ())
                ),
            )
            for number, unit in enumerate(units)
        ]

    def _comparable(
        self, number: int, unit: Candidates, dropped: list[DroppedRow]
    ) -> list[Compared]:
        responses = unit.responses
        if len(responses) < 2:
            detail = f"{len(responses)} responses, and 2 make a pair"
            dropped.append(_dropped(unit, "responses", "too_few_completions", detail))
            return []
        if self.settings.pairs == "all":
            twos = list(combinations(responses, 2))
        else:
            twos = list(zip(responses[::2], responses[1::2], strict=False))
        kept: list[Compared] = []
        limit = self.settings.max_characters
        for one, two in twos:
            try:
                check_pair(_row(unit, one, two))
            except RowProblem as problem:
                dropped.append(DroppedRow.of(problem, unit.source, unit.row))
                continue
            longest = max(len(one), len(two))
            if limit is not None and longest > limit:
                detail = f"{longest} characters, max_characters is {limit}"
                dropped.append(_dropped(unit, "responses", "too_long", detail))
                continue
            kept.append(Compared(number, one, two))
        return kept

    def _made(
        self, pair: Compared, unit: Candidates, owns: Sequence[Own], counts: Counter[str]
    ) -> BuiltPair | DroppedRow:
        for one in pair.rounds:
            counts[f"verdict_{one.verdict or 'none'}"] += 1
            counts["contradictory_critiques"] += one.contradicts_itself
        decision = decide(pair.rounds, self.settings)
        if isinstance(decision, Undecided):
            return _dropped(unit, "verdict", decision.reason, decision.detail)
        chosen, rejected = (pair.one, pair.two) if decision.chosen == 1 else (pair.two, pair.one)
        overlap = _overlaps(owns, chosen, rejected)
        if overlap is not None:
            counts["nearer_own"] += overlap[0] > overlap[1]
            counts["farther_own"] += overlap[0] < overlap[1]
        missing = sum(one.choice is None for one in pair.rounds)
        preference = decision.preference
        return BuiltPair(
            **_row(unit, chosen, rejected).model_dump(exclude_none=True),
            preference=preference,
            margin=decision.margin,
            uid=self._pair_uid(unit, pair),
            pipeline="selfref",
            round=self.round,
            prob_chosen=preference,
            uncertainty=2.0 * (1.0 - preference),
            model=unit.policy,
            config_hash=self.config_hash,
            seed=self.seed,
            detail={
                "annotator": self.annotator.identity,
                "votes": list(decision.votes if decision.chosen == 1 else decision.votes[::-1]),
                "n_none": missing,
                "strength_kind": self.settings.strength,
                "consistent": not missing and 0 in decision.votes,
                "principle_hash": content_id(self.settings.principle),
                "own_overlap": overlap,
            },
        )

    def _record(
        self, unit: Candidates, pairs: Sequence[Compared], owns: Sequence[Own]
    ) -> dict[str, Any]:
        """Own answers and judgements of one unit, texts included."""
        shared = owns[:1] if self.settings.own_answer == "shared" else owns
        return {
            "annotator": self.annotator.identity,
            "own_answers": [
                {"text": own} if isinstance(own, str) else {"failure": own.reason}
                for own in shared
                if own is not None
            ],
            "judgements": [
                {
                    "pair": self._pair_uid(unit, pair),
                    "responses": [pair.one, pair.two],
                    "rounds": [{**asdict(one), "choice": one.choice} for one in pair.rounds],
                }
                for pair in pairs
            ],
        }

    def _pair_uid(self, unit: Candidates, pair: Compared) -> str:
        """The same whichever of the two responses stands first."""
        return self._uid("pair", _jsonable(unit.prompt), sorted((pair.one, pair.two)))

    def _uid(self, *parts: object) -> str:
        return content_id("selfref", self.config_hash, self.seed, self.round, *parts)


def _row(unit: Candidates, chosen: str, rejected: str) -> PreferencePair:
    def written(text: str) -> Text:
        if isinstance(unit.prompt, str):
            return text
        return (Message(role="assistant", content=text),)

    return PreferencePair(
        prompt=unit.prompt,
        chosen=written(chosen),
        rejected=written(rejected),
        group_id=unit.group_id or content_id(_jsonable(unit.prompt)),
        source=unit.source,
        row=unit.row,
    )


def _jsonable(prompt: Text) -> object:
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def _dropped(unit: Candidates, at: str, reason: Reason, detail: str) -> DroppedRow:
    return DroppedRow(source=unit.source, row=unit.row, field=at, reason=reason, detail=detail)


def _overlaps(owns: Sequence[Own], chosen: str, rejected: str) -> tuple[float, float] | None:
    """Share of words that chosen and rejected have in common with the own answers (Jaccard)."""
    words = {word for own in owns if isinstance(own, str) for word in own.split()}
    if not words:
        return None
    near, far = (
        len(words & set(text.split())) / len(words | set(text.split()))
        for text in (chosen, rejected)
    )
    return near, far
