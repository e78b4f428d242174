"""The dialogue with the annotator about a whole chunk: own answers, critiques, log-probs.

Every kind of call is made once for all pairs of the chunk, so that the annotator's batches are
full; what is drawn for a pair depends on the pair and the seed, not on the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from align.data.completions import Completion
from align.data.messages import LONE_SURROGATE
from align.data.prompts import Prompt
from align.data.questions import Candidates
from align.policies.base import Failed, Policy, Sampling
from align.policies.writer import NoAnswer, Writer
from align_data.self_reference.annotate import ORDERS, Annotation, annotation, own_answer_prompt
from align_data.self_reference.forced import Asked, Labels, score_labels, score_texts
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.strength import Round
from align_data.self_reference.verdict import parse

# None: there is no own answer; Failed: there should be one.
Own = str | Failed | None


@dataclass
class Compared:
    """Two responses of one prompt, and what the annotator said about them.

    Attributes:
        unit: number of the prompt in the chunk.
        one: response 1.
        two: response 2.
        rounds: in the order of their numbers.
        asked: what the annotator was asked, by number of the round.
    """

    unit: int
    one: str
    two: str
    rounds: list[Round] = field(default_factory=list)
    asked: dict[int, Annotation] = field(default_factory=dict)


class Dialogue:
    """What is asked, of whom, and how.

    Args:
        settings: the recipe's node.
        annotator: answers, criticises and chooses.
        scorer: log-probs of the annotator's weights, where they are needed.
        seed: of all draws.
        round: of the loop.
    """

    def __init__(
        self,
        settings: SelfReferenceSettings,
        annotator: Policy,
        scorer: Writer | None,
        seed: int,
        round: int,  # noqa: A002
    ) -> None:
        self.settings = settings
        self.annotator = annotator
        self.scorer = scorer
        self.seed = seed
        self.round = round
        self._sampling = Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )

    def hold(
        self,
        pairs: Sequence[Compared],
        units: Sequence[Candidates],
        counts: Sequence[Counter[str]],
    ) -> dict[int, Sequence[Own]]:
        """Fills in the rounds of every pair.

        Args:
            pairs: to be compared.
            units: the chunk.
            counts: one per unit, added to.

        Returns:
            The own answers of every unit that has a pair, one per round.
        """
        wanted = sorted({pair.unit for pair in pairs})
        owns = self._own_answers(units, wanted, counts)
        self._annotate(pairs, units, owns, counts)
        self._score(pairs, counts)
        return owns

    def _own_answers(
        self, units: Sequence[Candidates], wanted: Sequence[int], counts: Sequence[Counter[str]]
    ) -> dict[int, Sequence[Own]]:
        """Per unit: one own answer per round, all the same where it is shared."""
        rounds = self.settings.rounds
        if self.settings.own_answer == "none":
            return {number: [None] * rounds for number in wanted}
        prompts = {number: own_answer_prompt(units[number]) for number in wanted}
        # The same prompt in two units of the chunk is answered once.
        different = {prompt.id: prompt for prompt in prompts.values()}
        n = 1 if self.settings.own_answer == "shared" else rounds
        drawn = self._generate(list(different.values()), n, "own_answer")
        by_id = dict(zip(different, drawn, strict=True))
        owns: dict[int, Sequence[Own]] = {}
        for number, prompt in prompts.items():
            texts = [_text(sample) for sample in by_id[prompt.id]]
            counts[number]["own_answers"] += n
            counts[number]["own_answers_failed"] += sum(isinstance(t, Failed) for t in texts)
            owns[number] = texts * (rounds // n)
        return owns

    def _annotate(
        self,
        pairs: Sequence[Compared],
        units: Sequence[Candidates],
        owns: dict[int, Sequence[Own]],
        counts: Sequence[Counter[str]],
    ) -> None:
        """Fills in the rounds of every pair, without what has to be scored."""
        for pair in pairs:
            for k in range(self.settings.rounds):
                order = ORDERS[k % 2]
                own = owns[pair.unit][k]
                if isinstance(own, Failed):
                    pair.rounds.append(Round(k, order, failure=f"own answer: {own.reason}"))
                    continue
                first, second = (pair.one, pair.two) if order == "12" else (pair.two, pair.one)
                pair.asked[k] = annotation(
                    units[pair.unit], first, second, own, self.settings.principle
                )
                pair.rounds.append(Round(k, order))
        for k, samples, purpose in self._calls():
            asked = [pair for pair in pairs if k in pair.asked]
            prompts = [pair.asked[k].prompt for pair in asked]
            for pair, drawn in zip(asked, self._generate(prompts, samples, purpose), strict=True):
                for sample, answer in enumerate(drawn):
                    at = k + 2 * sample
                    pair.rounds[at] = self._round(pair.rounds[at], pair.asked[at], answer)
                    counts[pair.unit]["critiques"] += 1

    def _calls(self) -> list[tuple[int, int, str]]:
        """(first round, samples, purpose) of each generation; samples are two rounds apart."""
        rounds = self.settings.rounds
        if self.settings.own_answer == "each_round":
            return [(k, 1, f"critique/{k}") for k in range(rounds)]
        return [(k, rounds // 2, "critique") for k in range(2)]

    def _round(self, empty: Round, asked: Annotation, answer: Completion | Failed) -> Round:
        text = _text(answer)
        if isinstance(text, Failed):
            return replace(empty, failure=f"critique: {text.reason}")
        if self.settings.verdict == "forced":
            return replace(empty, feedback=text, rule="forced")
        parsed = parse(text, asked.code, rule=self.settings.parse)
        failure = None if parsed.side else "no verdict in the critique"
        return replace(empty, feedback=text, verdict=parsed.side, rule=parsed.rule, failure=failure)

    def _score(self, pairs: Sequence[Compared], counts: Sequence[Counter[str]]) -> None:
        scorer, settings = self.scorer, self.settings
        if scorer is None or not settings.needs_scorer:
            return
        waiting = [
            (pair, k) for pair in pairs for k in pair.asked if pair.rounds[k].failure is None
        ]
        if settings.strength == "forced_verdict" or settings.verdict == "forced":
            asked = [
                Asked(
                    pair.asked[k].prompt,
                    parse(pair.rounds[k].feedback, pair.asked[k].code).body,
                    pair.asked[k].code,
                )
                for pair, k in waiting
            ]
            for (pair, k), found in zip(waiting, score_labels(scorer, asked), strict=True):
                pair.rounds[k] = self._with_labels(pair.rounds[k], found)
                counts[pair.unit]["scored"] += 2
        if settings.strength == "pooled_feedback":
            asked = [Asked(pair.asked[k].prompt, pair.rounds[k].feedback) for pair, k in waiting]
            for (pair, k), mean in zip(waiting, score_texts(scorer, asked), strict=True):
                one = pair.rounds[k]
                if isinstance(mean, NoAnswer):
                    pair.rounds[k] = replace(one, failure=one.failure or f"scoring: {mean.reason}")
                else:
                    pair.rounds[k] = replace(one, mean_logp=mean)
                counts[pair.unit]["scored"] += 1

    def _with_labels(self, one: Round, found: Labels | NoAnswer) -> Round:
        if isinstance(found, NoAnswer):
            return replace(one, failure=f"scoring: {found.reason}")
        a, b = found.ppl
        one = replace(one, ppl=(a, b) if one.order == "12" else (b, a))
        if self.settings.verdict == "written":
            return one
        if found.mass < self.settings.min_label_mass:
            return replace(one, failure="neither verdict is likely behind the critique")
        if a == b:
            return replace(one, failure="both verdicts are equally likely")
        return replace(one, verdict="first" if a < b else "second")

    def _generate(
        self, prompts: Sequence[Prompt], n: int, purpose: str
    ) -> list[list[Completion | Failed]]:
        if not prompts:
            return []
        text = f"{self.seed}/self_reference/{self.round}/{purpose}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        return self.annotator.generate(prompts, n, self._sampling, seed)


def _text(answer: Completion | Failed) -> str | Failed:
    if isinstance(answer, Failed):
        return answer
    written = answer.completion
    text = written if isinstance(written, str) else written[-1].content
    if LONE_SURROGATE.search(text):
        prompt = Prompt(prompt=answer.prompt, source=answer.source, row=answer.row)
        return Failed(prompt, answer.sample, "unanswered", "a lone surrogate, which is no text")
    return text
