"""Siblings of a searched tree become preference pairs over steps.

Both sides are whole beginnings of an answer: the steps they share, then their own. What they share
has the same tokens and context on both sides, so its log-ratio cancels in a margin. Steps without
an alternative join the beginning. Only a side that the policy itself ended has an end token.

Soft labels from visits: Xie et al. 2024 (arXiv 2405.00451), alpha as in the program. Pairs of all
explored siblings by a mixed score, more than a threshold apart: Agent Q, 2024 (arXiv 2408.07199,
algorithm 1).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from align.data.built import BuiltPair
from align.data.messages import Message, Text
from align.data.problems import DroppedRow, Reason
from align.data.questions import Question
from align.data.records import content_id
from align_data.mcts.settings import AgentQSettings, Search, XieSettings
from align_data.mcts.tree import Node, Standing, Tree, standing


@dataclass(frozen=True)
class Origin:
    """What all pairs of one tree share.

    Attributes:
        question: that the tree answers.
        uid: of the tree.
        prompt_ids: as drawn behind.
        text: answer up to a node.
        model: identity of the policy.
        config_hash: of the settings.
        seed: of the draws.
        round: of a loop.
        can_verify: whether the question's answers can be.
    """

    question: Question
    uid: str
    prompt_ids: tuple[int, ...]
    text: Callable[[Node], str]
    model: str
    config_hash: str
    seed: int
    round: int
    can_verify: bool


@dataclass(frozen=True)
class _Candidate:
    parent: Node
    better: Standing
    worse: Standing
    better_score: float
    worse_score: float

    @property
    def gap(self) -> float:
        return self.better_score - self.worse_score


class _Unfit(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


def smoothing(better_visits: int, worse_visits: int) -> float:
    """alpha = min(1 - 1 / (1 + N worse / max(1, N better)), 1/2)."""
    return min(1 - 1 / (1 + worse_visits / max(1, better_visits)), 0.5)


def step_pairs(
    tree: Tree, settings: Search, origin: Origin
) -> tuple[list[BuiltPair], list[DroppedRow]]:
    """Every candidate of the tree, as a pair or with the reason why it is none."""
    pairs: list[BuiltPair] = []
    dropped: list[DroppedRow] = []
    for candidate in _candidates(tree, settings, f"{origin.seed}/{origin.uid}"):
        try:
            _check_tree(tree, settings, origin)
            _check(candidate, settings)
            pair = _pair(tree, candidate, settings, origin)
            if settings.max_pairs is not None and len(pairs) >= settings.max_pairs:
                raise _Unfit("not_drawn", f"max_pairs is {settings.max_pairs}")
            pairs.append(pair)
        except _Unfit as unfit:
            dropped.append(
                DroppedRow(
                    source=origin.question.source,
                    row=origin.question.row,
                    field=f"step {candidate.parent.depth + 1}",
                    reason=unfit.reason,
                    detail=unfit.detail,
                )
            )
    return pairs, dropped


def _candidates(tree: Tree, settings: Search, seed: str) -> Iterator[_Candidate]:
    if settings.pairs_from == "committed":
        parents = [tree.nodes[number] for number in tree.committed]
    else:
        parents = sorted(tree.nodes, key=lambda node: (node.depth, node.number))
    for parent in parents:
        standings = tree.frozen.get(parent.number)
        if standings is None:
            standings = tuple(standing(child) for child in tree.children(parent))
        if len(standings) < 2:
            continue
        if isinstance(settings, AgentQSettings):
            yield from _every_two(tree, parent, standings, settings.mix)
        else:
            yield _best_and_other(parent, standings, settings, seed)


def _best_and_other(
    parent: Node, standings: Sequence[Standing], settings: XieSettings, seed: str
) -> _Candidate:
    ordered = sorted(standings, key=lambda s: (s.q, s.prior, s.reward, s.value, s.visits))
    others, better = ordered[:-1], ordered[-1]
    worse = others[0]
    if settings.reject == "random":
        worse = random.Random(f"{seed}/{parent.number}/reject").choice(others)
    return _Candidate(parent, better, worse, better.q, worse.q)


def _every_two(
    tree: Tree, parent: Node, standings: Sequence[Standing], mix: float
) -> Iterator[_Candidate]:
    def score(one: Standing) -> float:
        rank_value = tree.nodes[one.number].rank_value
        return mix * one.q + (1 - mix) * (rank_value or 0.0)

    for first, second in itertools.combinations(standings, 2):
        better, worse = (first, second) if score(first) >= score(second) else (second, first)
        yield _Candidate(parent, better, worse, score(better), score(worse))


def _check_tree(tree: Tree, settings: Search, origin: Origin) -> None:
    if settings.keep_trees == "all":
        return
    outcome = tree.nodes[tree.committed[-1]].outcome
    if not origin.can_verify:
        raise _Unfit("not_judged", "there is no known answer, and keep_trees is right")
    if outcome is not True:
        raise _Unfit("wrong_answer", "the answer that the search ended with")


def _check(candidate: _Candidate, settings: Search) -> None:
    visits = min(candidate.better.visits, candidate.worse.visits)
    if visits < settings.min_visits:
        raise _Unfit("too_few_visits", f"{visits} visits, min_visits is {settings.min_visits}")
    if isinstance(settings, AgentQSettings):
        if candidate.gap <= settings.threshold:
            raise _Unfit("small_margin", f"{candidate.gap:.3g}, threshold {settings.threshold:g}")
        return
    if candidate.gap == 0 and settings.equal_q == "drop":
        raise _Unfit("tie", "equal values")
    if candidate.gap < settings.min_q_gap:
        raise _Unfit("small_margin", f"{candidate.gap:.3g}, min_q_gap {settings.min_q_gap:g}")


def _pair(tree: Tree, candidate: _Candidate, settings: Search, origin: Origin) -> BuiltPair:
    chosen, rejected = candidate.better, candidate.worse
    chosen_score, rejected_score = candidate.better_score, candidate.worse_score
    uid = content_id(origin.uid, candidate.parent.number, chosen.number, rejected.number)
    if settings.labels == "sampled":
        kept = 1 / (1 + math.exp(rejected_score - chosen_score))
        if random.Random(f"{origin.seed}/{uid}/label").random() >= kept:
            chosen, rejected = rejected, chosen
            chosen_score, rejected_score = rejected_score, chosen_score
    nodes = tree.nodes[chosen.number], tree.nodes[rejected.number]
    texts = [origin.text(node) for node in nodes]
    if not all(text.strip() for text in texts):
        raise _Unfit("empty_completion", "a side has no text")
    if texts[0] == texts[1]:
        raise _Unfit("equal", "the two steps spell the same text")
    preference = None
    if settings.labels == "visits":
        preference = 1 - smoothing(chosen.visits, rejected.visits)
    question = origin.question
    return BuiltPair(
        prompt=question.prompt,
        chosen=_written(question.prompt, texts[0]),
        rejected=_written(question.prompt, texts[1]),
        chosen_score=chosen_score,
        rejected_score=rejected_score,
        preference=preference,
        margin=chosen_score - rejected_score,
        chosen_ends=nodes[0].has_end,
        rejected_ends=nodes[1].has_end,
        prompt_ids=origin.prompt_ids,
        chosen_ids=tree.ids(nodes[0]),
        rejected_ids=tree.ids(nodes[1]),
        group_id=question.group_id or origin.uid,
        source=question.source,
        row=question.row,
        uid=uid,
        pipeline=settings.pipeline,
        round=origin.round,
        assistant_prefix=origin.text(candidate.parent),
        visit_counts=(chosen.visits, rejected.visits),
        priors=(chosen.prior, rejected.prior),
        depth=candidate.parent.depth,
        pair_kind="step",
        model=origin.model,
        config_hash=origin.config_hash,
        seed=origin.seed,
        detail={"tree": origin.uid, "chosen_node": chosen.number, "rejected_node": rejected.number},
    )


def _written(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else (Message(role="assistant", content=text),)
