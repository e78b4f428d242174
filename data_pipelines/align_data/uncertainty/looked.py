"""A prompt on its way through the pipeline: responses, rewards, candidates, estimates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from align.data.built import Built, BuiltPair
from align.data.completions import JudgedPrompt
from align.data.messages import Message, Text, prompt_id
from align.data.pairs import check_pair
from align.data.problems import DroppedRow, Reason, RowProblem
from align.data.questions import Candidates
from align_data.uncertainty.candidates import Candidate
from align_data.uncertainty.information import Estimate

Unit = Candidates | JudgedPrompt
# What a pair is called until the choice over all of them.
ESTIMATED = "estimated"


@dataclass
class Looked:
    """A unit of work, half done.

    Attributes:
        unit: what is worked on.
        uid: of the unit.
        responses: with the known answer behind them, where that was asked for.
        rewards: one per response; None where the judge gave none.
        dropped: so far.
        pairs: candidates that are still there, by their uids.
        found: estimates by the pair's uid.
        readings: pairs that the estimator read, each order and network counted.
    """

    unit: Unit
    uid: str
    responses: list[str]
    rewards: list[float | None] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    pairs: dict[str, Candidate] = field(default_factory=dict)
    found: dict[str, Estimate] = field(default_factory=dict)
    readings: int = 0

    def drop(self, reason: Reason, at: str, detail: str) -> None:
        """Counts one more candidate as dropped."""
        self.dropped.append(
            DroppedRow(
                source=self.unit.source, row=self.unit.row, field=at, reason=reason, detail=detail
            )
        )

    def built(
        self,
        *,
        estimator: str,
        judge: str,
        round: int,  # noqa: A002
        config_hash: str,
        seed: int,
    ) -> Built:
        """What became of the unit; its pairs are candidates."""
        about = {"round": round, "config_hash": config_hash, "seed": seed}
        pairs: list[BuiltPair] = []
        for uid, candidate in self.pairs.items():
            try:
                pairs.append(self._pair(uid, candidate, about))
            except RowProblem as problem:
                self.drop(problem.reason, problem.field, problem.detail)
        estimates = self.found.values()
        return Built(
            uid=self.uid,
            read=len(pairs) + len(self.dropped),
            pairs=tuple(pairs),
            dropped=tuple(self.dropped),
            counts={
                "responses": len(self.responses),
                "estimated": len(self.found),
                "readings": self.readings,
                "passes": sum(len(e.passes) for e in estimates),
                "first_wins": sum(e.straight for e in estimates),
                "first_wins_swapped": sum(e.swapped or 0 for e in estimates),
            },
            record=self._record() | {"estimator": estimator, "judge": judge},
        )

    def _record(self) -> dict[str, Any]:
        return {
            "responses": self.responses,
            "rewards": self.rewards,
            "candidates": [
                {
                    "uid": uid,
                    "chosen_idx": c.chosen,
                    "rejected_idx": c.rejected,
                    "rank_chosen": c.rank_chosen,
                    "rank_rejected": c.rank_rejected,
                    "reward_margin": c.margin,
                }
                for uid, c in self.pairs.items()
            ],
            "estimates": [{"uid": uid, **e.to_json()} for uid, e in self.found.items()],
        }

    def _pair(self, uid: str, candidate: Candidate, about: dict[str, Any]) -> BuiltPair:
        unit, estimate = self.unit, self.found.get(uid)
        pair = BuiltPair(
            prompt=unit.prompt,
            chosen=_as_completion(unit.prompt, self.responses[candidate.chosen]),
            rejected=_as_completion(unit.prompt, self.responses[candidate.rejected]),
            chosen_score=self.rewards[candidate.chosen],
            rejected_score=self.rewards[candidate.rejected],
            margin=candidate.margin,
            group_id=unit.group_id if unit.group_id is not None else prompt_id(unit.prompt),
            source=unit.source,
            row=unit.row,
            uid=uid,
            pipeline="upo",
            uncertainty=None if estimate is None else estimate.information,
            prob_chosen=None if estimate is None else estimate.mean,
            pair_kind=ESTIMATED,
            model=unit.sampler if isinstance(unit, JudgedPrompt) else unit.policy,
            detail={} if estimate is None else {"agree": estimate.agrees},
            **about,
        )
        check_pair(pair)
        return pair


def _as_completion(prompt: Text, response: str) -> Text:
    return response if isinstance(prompt, str) else (Message(role="assistant", content=response),)
