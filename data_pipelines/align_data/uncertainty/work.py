"""Candidate pairs of each prompt with what the estimator says about them; `finish` then chooses.

Which pairs are reliable depends on all of them, so a chunk only estimates: what it leaves holds
every candidate pair as kept, and is no training data before `finish` (in `finish`) has been over
the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from align.data.built import Built
from align.data.completions import JudgedPrompt
from align.data.problems import REASONS, Reason
from align.data.records import content_id
from align.errors import RecipeError
from align.judges.base import Answer, Comparison, JudgeFailed, ScoreJudge
from align_data.uncertainty.candidates import candidate_pairs
from align_data.uncertainty.estimator import WHOLE, PairEstimator, estimates
from align_data.uncertainty.information import Estimate
from align_data.uncertainty.looked import Looked, Unit
from align_data.uncertainty.select import uniform
from align_data.uncertainty.settings import Legacy, UncertaintySettings


class UncertaintyWork:
    """The pipeline's core for a chunk of prompts.

    Args:
        settings: of the recipe.
        estimator: trained.
        judge: scores the responses; None where the units are judged prompts.
        seed: of every draw.
        config_hash: of the settings.
        round: of the loop; 0 outside of one.
    """

    def __init__(
        self,
        settings: UncertaintySettings,
        estimator: PairEstimator,
        judge: ScoreJudge | None = None,
        *,
        seed: int,
        config_hash: str,
        round: int = 0,  # noqa: A002
    ) -> None:
        self.settings = settings
        self.estimator = estimator
        self.judge = judge
        self.seed = seed
        self.config_hash = config_hash
        self.round = round
        who = [estimator.identity, "" if judge is None else judge.identity]
        self._about = content_id("upo", config_hash, seed, round, *who)

    def __call__(self, units: Sequence[Unit]) -> list[Built]:
        """One `Built` per unit, in order; its pairs are candidates until `finish` has chosen.

        Raises:
            RecipeError: units without scores, and no judge.
        """
        looked = [self._looked(unit) for unit in units]
        self._score(looked)
        for one in looked:
            self._pair_up(one)
        self._estimate(looked)
        return [self._built(one) for one in looked]

    def _looked(self, unit: Unit) -> Looked:
        uid = content_id(self._about, unit.model_dump(mode="json", exclude={"source", "row"}))
        if isinstance(unit, JudgedPrompt):
            return Looked(unit, uid, list(unit.completions))
        responses = list(unit.responses)
        known = unit.solution
        if self.settings.reference_answer == "add" and known is not None:
            responses += [known] if known not in responses else []
        return Looked(unit, uid, responses)

    def _score(self, looked: Sequence[Looked]) -> None:
        asked: list[tuple[Looked, Answer]] = []
        for one in looked:
            if isinstance(one.unit, JudgedPrompt):
                self._take_scores(one, one.unit)
                continue
            if self.judge is None:
                raise RecipeError(
                    "The responses have no rewards: name what scores them as pipeline.rewards, or "
                    "in a loop put a judge stage with `ask: scores` before this one."
                )
            asked += [
                (one, Answer(one.unit.prompt, text, f"{one.uid}/{n}"))
                for n, text in enumerate(one.responses)
            ]
        if not asked or self.judge is None:
            return
        for (one, _), score in zip(
            asked, self.judge.score([answer for _, answer in asked]), strict=True
        ):
            place = len(one.rewards)
            if isinstance(score, JudgeFailed):
                one.drop("failed", f"responses[{place}]", f"no reward: {score.reason}")
            one.rewards.append(None if isinstance(score, JudgeFailed) else score)

    def _take_scores(self, one: Looked, judged: JudgedPrompt) -> None:
        if judged.scores is None:
            raise RecipeError(
                "The judge compared the responses and gave no scores, by which candidate pairs are "
                "made: write `ask: scores` in the judge stage."
            )
        one.rewards = [
            None if place in judged.unfinished else score
            for place, score in enumerate(judged.scores)
        ]
        for place in judged.unfinished:
            one.drop("failed", f"completions[{place}]", "it was cut off at max_new_tokens")
        for place, score in enumerate(judged.scores):
            if score is None:
                one.drop("failed", f"completions[{place}]", "no reward from the judge stage")

    def _pair_up(self, one: Looked) -> None:
        found = candidate_pairs(one.rewards, self.settings.candidates)
        if not found:
            scored = sum(reward is not None for reward in one.rewards)
            one.drop("too_few_completions", "responses", f"{scored} responses have a reward")
        widest = max(found, key=lambda c: c.margin, default=None)
        for candidate in found:
            chosen, rejected = one.responses[candidate.chosen], one.responses[candidate.rejected]
            if candidate.margin == 0:
                one.drop("tie", "responses", "both have the same reward")
            elif chosen == rejected:
                one.drop("equal", "responses", "both are the same text")
            else:
                uid = content_id(one.uid, candidate.chosen, candidate.rejected)
                # The published program's far pairs need no estimate.
                is_far = isinstance(self.settings.select, Legacy) and candidate is widest
                if self._is_estimated(uid) or is_far:
                    one.pairs[uid] = candidate
                else:
                    one.drop("not_drawn", "responses", "not among the pairs that were estimated")

    def _is_estimated(self, uid: str) -> bool:
        share = self.settings.estimated
        return share == 1.0 or uniform(self.seed, uid, "estimated") <= share

    def _estimate(self, looked: Sequence[Looked]) -> None:
        asked = [
            (place, uid)
            for place, one in enumerate(looked)
            for uid in one.pairs
            if self._is_estimated(uid)
        ]
        if self.settings.agreement == "first_pass":
            asked = self._agreed_at_once(looked, asked)
        networks = range(self.settings.passes)
        for place, uid, estimate in self._asked(looked, asked, networks):
            looked[place].found[uid] = estimate

    def _agreed_at_once(
        self,
        looked: Sequence[Looked],
        asked: Sequence[tuple[int, str]],
    ) -> list[tuple[int, str]]:
        """Those of `asked` on which the whole network agrees with the reward; drops the others."""
        agreed: list[tuple[int, str]] = []
        for place, uid, estimate in self._asked(looked, asked, [WHOLE]):
            if estimate.agrees:
                agreed.append((place, uid))
            else:
                del looked[place].pairs[uid]
                looked[place].drop(
                    "disagreement", "responses", "the whole network prefers the other"
                )
        return agreed

    def _asked(
        self,
        looked: Sequence[Looked],
        asked: Sequence[tuple[int, str]],
        networks: Sequence[int | None],
    ) -> list[tuple[int, str, Estimate]]:
        """Estimates of the pairs that have one; the others are dropped."""
        items = [self._comparison(looked[place], uid) for place, uid in asked]
        order = self.settings.order
        read = estimates(self.estimator, items, networks=networks, order=order)
        found: list[tuple[int, str, Estimate]] = []
        for (place, uid), estimate in zip(asked, read, strict=True):
            if isinstance(estimate, JudgeFailed):
                del looked[place].pairs[uid]
                reason = estimate.reason
                known = cast(Reason, reason) if reason in REASONS else "failed"
                looked[place].drop(known, "responses", f"estimator: {reason}: {estimate.detail}")
                continue
            looked[place].readings += len(networks) * (2 if order == "both" else 1)
            found.append((place, uid, estimate))
        return found

    def _comparison(self, one: Looked, uid: str) -> Comparison:
        pair = one.pairs[uid]
        return Comparison(
            one.unit.prompt, one.responses[pair.chosen], one.responses[pair.rejected], uid
        )

    def _built(self, one: Looked) -> Built:
        judge = self.judge
        if isinstance(one.unit, JudgedPrompt):
            scored_by = one.unit.judge
        else:
            scored_by = "" if judge is None else judge.identity
        return one.built(
            estimator=self.estimator.identity,
            judge=scored_by,
            round=self.round,
            config_hash=self.config_hash,
            seed=self.seed,
        )
