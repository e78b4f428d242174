"""New steps behind a node: drawn, cut, told apart, evaluated and ranked.

Every method that asks a model is a generator: it yields what it asks, and is sent the answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from align.data.messages import Text
from align.data.questions import Question
from align.policies.base import Sampling
from align.policies.writer import Draw, Drawn, NoAnswer, OptionMass, Stem, Writer
from align_data.mcts import confidence as critic_prompts
from align_data.mcts.settings import AgentQSettings, Search
from align_data.mcts.steps import LINE_END, Step, cut, glued
from align_data.mcts.tree import Node, Tree

# Of the program: with so few tokens left an answer counts as cut off.
_SPARE = 5
# Times that a step too short to stand alone is drawn on.
_GLUED = 4

Kind: TypeAlias = Literal["line", "sentence", "chunk", "finish"]


@dataclass(frozen=True)
class Rate:
    """The critic is asked for the option behind `stem`."""

    stem: Stem
    options: Mapping[str, Sequence[str]]


class Evaluated(NamedTuple):
    """A step and what the critic said of it; None where it was not asked."""

    step: Step
    confidence: float | None


Ask: TypeAlias = Draw | Rate
Asking: TypeAlias = Generator[list[Ask], list[Any], Any]


class SearchFailed(Exception):
    """A model gave no usable answer, so the tree cannot go on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Expansion:
    """Asks for new steps of one tree.

    Args:
        question: what is to be answered.
        uid: names the tree; draws are keyed by it.
        settings: of the pipeline.
        tree: whose nodes are continued; the caller makes children of what it is given.
        writer: draws the steps; here only its tokenizer is asked.
        critic: evaluates and ranks them; likewise.
        seed: of the order in which the critic is shown steps.

    Raises:
        RowProblem: the prompt cannot be used.
    """

    def __init__(
        self,
        question: Question,
        uid: str,
        settings: Search,
        tree: Tree,
        writer: Writer,
        critic: Writer,
        seed: int,
    ) -> None:
        self.prompt_ids = writer.prompt_ids(question.prompt)
        self.counts: Counter[str] = Counter()
        self._question = question
        self._uid = uid
        self._settings = settings
        self._tree = tree
        self._writer = writer
        self._critic = critic
        self._seed = seed

    def text(self, node: Node) -> str:
        """The answer up to and with `node`."""
        return self._writer.text(self._tree.ids(node), self.prompt_ids[-1])

    def has_room(self, node: Node) -> bool:
        """Whether the context has tokens left behind `node`."""
        return self._writer.room(self._stem(node, "room")) > _SPARE

    def rest(self, node: Node) -> Asking:
        """The whole answer that the policy ends `node` with; None where it came to no end."""
        if not self.has_room(node):
            return None
        stem = self._stem(node, f"rollout/{node.visits}")
        drawn = yield from self._draw(stem, 1, "finish", node)
        step = self._cut(drawn[0], "finish", node, stem)
        if not step.is_last:
            return None
        return self._writer.text((*self._tree.ids(node), *step.ids), self.prompt_ids[-1])

    def steps(self, node: Node, is_finish: bool) -> Asking:
        """Different steps behind `node`; too short ones are drawn on."""
        settings = self._settings
        kind = "finish" if is_finish else settings.step
        stem = self._stem(node, "steps")
        breadth = settings.first_breadth if node is self._tree.root else settings.breadth
        drawn = yield from self._draw(stem, 1 if is_finish else breadth, kind, node)
        steps = [self._cut(one, kind, node, stem) for one in drawn]
        for turn in range(_GLUED):
            stems = {
                place: Stem(
                    stem.prompt_ids, stem.prefix_ids + step.ids, f"{stem.key}/{place}+{turn}"
                )
                for place, step in enumerate(steps)
                if step.is_open
            }
            stems = {p: one for p, one in stems.items() if self._writer.room(one) > _SPARE}
            if not stems:
                break
            asks: list[Ask] = [
                Draw(one, 1, self._sampling(kind, node, one)) for one in stems.values()
            ]
            answers = yield asks
            for (place, one), answer in zip(stems.items(), answers, strict=True):
                more = self._cut(self._counted(answer)[0], kind, node, one)
                ids = steps[place].ids + more.ids
                steps[place] = glued(steps[place], more, self._spelled(stem, ids))
        kept: dict[tuple[str, bool], Step] = {}
        for step in steps:
            ends_here = step.is_last and node is not self._tree.root
            if step.text.strip() or ends_here:
                kept.setdefault((step.text, step.is_last), step)
        self.counts["steps_left_out"] += len(steps) - len(kept)
        return list(kept.values())

    def evaluate(self, node: Node, steps: Sequence[Step]) -> Asking:
        """Steps with their confidence; one that the critic could not evaluate is left out."""
        settings = self._settings
        if isinstance(settings, AgentQSettings) or settings.confidence == "none" or not steps:
            return [Evaluated(step, None) for step in steps]
        how = settings.confidence
        options = critic_prompts.CORRECT if how == "options" else critic_prompts.GRADES
        sees = settings.critic_sees == "answer"
        behind = self._tree.ids(node)
        asks: list[Ask] = []
        for place, step in enumerate(steps):
            so_far = self._writer.text((*behind, *step.ids), self.prompt_ids[-1])
            prompt = critic_prompts.evaluation_prompt(self._question, so_far, how, sees_answer=sees)
            asks.append(self._rate(prompt, options, f"{node.number}/confidence/{place}"))
        answers = yield asks
        found: list[Evaluated] = []
        for step, answer in zip(steps, answers, strict=True):
            self.counts["asked"] += 1
            if isinstance(answer, NoAnswer):
                self.counts["not_evaluated"] += 1
                continue
            self.counts["truncated"] += answer.is_truncated
            said = critic_prompts.confidence(answer, how, settings.confidence_scale)
            found.append(Evaluated(step, round(said, 6)))
        if not found:
            first = answers[0]
            raise SearchFailed(first.reason, f"the critic: {first.detail}")
        return found

    def rank(self, node: Node) -> Asking:
        """The best of the remaining children is asked for until all are ranked: K - 1 questions."""
        children = self._tree.children(node)
        # The order of asking would favour the first, so it is drawn anew for each place.
        remaining = list(range(len(children)))
        random.Random(f"{self._seed}/{self._uid}/{node.number}/rank").shuffle(remaining)
        so_far = self.text(node)
        order: list[int] = []
        while len(remaining) > 1:
            prompt = critic_prompts.ranking_prompt(
                self._question,
                so_far,
                [children[place].text for place in remaining],
                sees_answer=self._settings.critic_sees == "answer",
            )
            options = critic_prompts.letters(len(remaining))
            key = f"{node.number}/rank/{len(order)}"
            [answer] = yield [self._rate(prompt, options, key)]
            self.counts["asked"] += 1
            if isinstance(answer, NoAnswer):
                raise SearchFailed(answer.reason, f"the critic: {answer.detail}")
            assert isinstance(answer, OptionMass)
            order.append(remaining.pop(critic_prompts.best(answer)))
        order += remaining
        for child, value in zip(children, critic_prompts.rank_values(order), strict=True):
            child.rank_value = value

    def _draw(self, stem: Stem, n: int, kind: Kind, node: Node) -> Asking:
        [answer] = yield [Draw(stem, n, self._sampling(kind, node, stem))]
        return self._counted(answer)

    def _counted(self, answer: list[Drawn] | NoAnswer) -> list[Drawn]:
        if isinstance(answer, NoAnswer):
            raise SearchFailed(answer.reason, f"the policy: {answer.detail}")
        self.counts["draws"] += len(answer)
        self.counts["drawn_tokens"] += sum(len(one.ids) for one in answer)
        return answer

    def _sampling(self, kind: Kind, node: Node, stem: Stem) -> Sampling:
        settings = self._settings
        most = settings.finish_tokens if kind == "finish" else settings.step_tokens
        at_root = node is self._tree.root
        return Sampling(
            max_new_tokens=min(most, self._writer.room(stem)),
            temperature=settings.first_temperature if at_root else settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            stop=(*((LINE_END,) if kind == "line" else ()), *settings.answer_ends),
        )

    def _cut(
        self,
        drawn: Drawn,
        kind: Kind,
        node: Node,
        stem: Stem,
    ) -> Step:
        return cut(
            drawn,
            kind,
            lambda ids: self._spelled(stem, ids),
            answer_ends=self._settings.answer_ends,
            shortest=self._settings.min_step_characters,
            step_tokens=self._settings.step_tokens,
            at_root=node is self._tree.root,
        )

    def _spelled(self, stem: Stem, ids: Sequence[int]) -> str:
        return self._writer.text(ids, (stem.prefix_ids or stem.prompt_ids)[-1])

    def _stem(self, node: Node, purpose: str) -> Stem:
        return Stem(self.prompt_ids, self._tree.ids(node), f"{self._uid}/{node.number}/{purpose}")

    def _rate(self, prompt: Text, options: Mapping[str, Sequence[str]], key: str) -> Rate:
        return Rate(Stem(self._critic.prompt_ids(prompt), (), f"{self._uid}/{key}"), options)
