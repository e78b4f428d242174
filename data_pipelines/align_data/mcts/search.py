"""One tree's search as a generator: it yields what it asks of the models, and is sent the answers.

Xie et al. 2024 (arXiv 2405.00451) and the authors' program: PUCT with the policy's own prior,
self-evaluation and outcome as value, the path committed to one step at a time. Putta et al. 2024
(Agent Q, arXiv 2408.07199): UCB1, steps ranked by a critic, a rollout to the end per simulation.

Differs from the paper: one simulation at a time is under way in a tree, and a batch is filled by
other trees (`align_data.mcts.lockstep`); log-probs come from the draw instead of a second
forward pass; a finished answer that ran out of tokens is wrong whatever it says.
"""

from __future__ import annotations

from align.data.questions import Question
from align.policies.writer import Writer
from align_data.mcts.expansion import Asking, Expansion
from align_data.mcts.settings import AgentQSettings, Search, XieSettings
from align_data.mcts.tree import (
    Node,
    Tree,
    back_up_mean,
    back_up_outcome,
    back_up_weighted,
    prior,
    puct,
    ucb1,
)
from align_data.mcts.verify import Verifier


class TreeSearch:
    """The search for one question.

    Args:
        question: what is to be answered.
        uid: names the tree; draws are keyed by it.
        settings: of the pipeline.
        writer: draws the steps; here only its tokenizer is asked.
        critic: evaluates and ranks them; likewise.
        verifier: checks finished answers.
        seed: of all that is drawn here; the tokens' own is given with the draws.

    Raises:
        RowProblem: the prompt cannot be used.
    """

    def __init__(
        self,
        question: Question,
        uid: str,
        settings: Search,
        writer: Writer,
        critic: Writer,
        verifier: Verifier,
        seed: int,
    ) -> None:
        self.question = question
        self.uid = uid
        self.settings = settings
        self.tree = Tree()
        self.expansion = Expansion(question, uid, settings, self.tree, writer, critic, seed)
        self.counts = self.expansion.counts
        self.can_verify = verifier.right(question, "") is not None
        self._verifier = verifier

    def run(self) -> Asking:
        """The whole search; `tree` and `counts` hold what it found.

        Raises:
            SearchFailed: the policy or the critic gave no answer.
            RowProblem: a prompt for the critic cannot be used.
        """
        if isinstance(self.settings, XieSettings):
            yield from self._committing(self.settings)
        else:
            yield from self._from_the_question()

    def _committing(self, settings: XieSettings) -> Asking:
        tree = self.tree
        here = tree.root
        while not here.is_terminal:
            for _ in range(settings.from_root if here is tree.root else settings.from_step):
                yield from self._simulate(here, settings)
            if not here.children:
                return
            tree.freeze(here)
            here = max(tree.children(here), key=self._settled)
            tree.committed.append(here.number)

    def _settled(self, node: Node) -> tuple[float, float, float]:
        """What is committed to: often visited, with children visited unequally; then Q, then V."""
        visits = [child.visits for child in self.tree.children(node)] or [0]
        return node.visits * (1 + max(visits) - min(visits)), node.q, node.below

    def _simulate(self, here: Node, settings: XieSettings) -> Asking:
        """Down by PUCT, drawing what is not there yet, to an end; then the values move up."""
        self.counts["simulations"] += 1
        path = [here]
        node = here
        while not _is_end(node, here, settings):
            if not node.children:
                yield from self._expand(node)
                if not node.children:
                    self._cut_off(node)
                    break
            node = max(
                self.tree.children(node), key=lambda n: puct(path[-1], n, settings.exploration)
            )
            path.append(node)
        if settings.backup == "mean":
            back_up_mean(path, settings.gamma)
        else:
            back_up_weighted(self.tree, path, settings.gamma, settings.root_count)

    def _from_the_question(self) -> Asking:
        tree = self.tree
        for _ in range(self.settings.from_root):
            self.counts["simulations"] += 1
            path = [tree.root]
            while path[-1].children:
                path.append(self._by_ucb(path[-1]))
            if not path[-1].is_terminal:
                yield from self._expand(path[-1])
                if path[-1].children:
                    path.append(self._by_ucb(path[-1]))
                else:
                    self._cut_off(path[-1])
            leaf = path[-1]
            right = leaf.outcome if leaf.is_terminal else (yield from self._roll_out(leaf))
            back_up_outcome(path, float(right is True))
        node = tree.root
        while any(child.visits for child in tree.children(node)):
            node = max(tree.children(node), key=lambda n: (n.visits > 0, n.q, n.visits))
            tree.committed.append(node.number)

    def _by_ucb(self, parent: Node) -> Node:
        """The child with the highest bound; of equal ones that which the critic likes best."""
        exploration = self.settings.exploration
        return max(
            self.tree.children(parent),
            key=lambda n: (ucb1(parent, n, exploration), n.rank_value or 0.0),
        )

    def _roll_out(self, node: Node) -> Asking:
        """Whether the answer is right that the policy ends `node` with; it is not kept."""
        answer = yield from self.expansion.rest(node)
        return answer is not None and self._verifier.right(self.question, answer) is True

    def _expand(self, node: Node) -> Asking:
        """Draws steps behind `node`, evaluates them, and makes them its children."""
        settings = self.settings
        if settings.last_step is not None and node.depth >= settings.last_step:
            return
        if not self.expansion.has_room(node):
            return
        is_finish = settings.last_step is None and node.depth >= settings.depth
        steps = yield from self.expansion.steps(node, is_finish)
        evaluated = yield from self.expansion.evaluate(node, steps)
        for step, said in evaluated:
            child = self.tree.add(node, step.text, step.ids, step.logps)
            child.prior = prior(child.logps, settings.length_penalty)
            child.confidence = said
            child.has_end = step.has_end
            child.is_terminal = step.is_last or is_finish
            child.is_cut = child.is_terminal and not step.is_last
            self._set_values(child)
        if isinstance(settings, AgentQSettings) and settings.ranking == "critic":
            yield from self.expansion.rank(node)

    def _set_values(self, node: Node) -> None:
        """v, r and the first Q of a node whose confidence and end are known."""
        if node.is_terminal and self.can_verify:
            node.outcome = (
                not node.is_cut
                and self._verifier.right(self.question, self.expansion.text(node)) is True
            )
        if isinstance(self.settings, AgentQSettings):
            return
        parent = self.tree.parent(node)
        value = node.confidence or 0.0
        if self.settings.value == "program":
            value = value / max(parent.depth - 3, 1) or parent.value
        if node.outcome is not None:
            value += 1.0 if node.outcome else -1.0
        node.value = value
        node.reward = value if self.settings.value == "paper" else value - parent.value
        # The program adds V of the parent, which is 0 for as long as it has no children.
        node.q = node.reward

    def _cut_off(self, node: Node) -> None:
        """Nothing can follow: the answer ends without an end."""
        node.is_terminal = node.is_cut = True
        if node is not self.tree.root:
            self._set_values(node)


def _is_end(node: Node, here: Node, settings: XieSettings) -> bool:
    is_far = settings.beyond_depth == "stop" and node.depth - here.depth >= settings.depth
    return node.is_terminal or is_far
