"""Plain nodes of a search over answers, what is chosen next, and how values move up.

Xie et al., Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning, 2024,
arXiv 2405.00451, with the formulas of the authors' program (`back_up_weighted`, `puct`, `prior`);
Putta et al., Agent Q, 2024, arXiv 2408.07199 (`ucb1`, `back_up_outcome`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

DIGITS = 5  # of a log-prob [nats]: beyond them, the batch it was computed in shows


@dataclass
class Node:
    """The answer so far, and what the search found out about it.

    Attributes:
        number: place in the tree's list.
        parent: number of the node it continues; None for the question.
        depth: steps from the question.
        text: of the last step.
        ids: tokens of the last step, the end token included where one was drawn.
        logps: nats, one per id.
        prior: of the last step.
        confidence: what the critic said; None where it was not asked.
        outcome: whether the answer is right; None where it is unfinished or cannot be verified.
        rank_value: 1 for the best of its siblings by the critic, 0 for the last; None without one.
        value: v, from confidence and outcome.
        reward: r of the last step.
        q: Q of the last step.
        below: V, what is still to come.
        visits: N.
        is_terminal: nothing follows.
        has_end: an end token was drawn.
        is_cut: terminal because no room was left, not because the answer ended.
        children: their numbers.
    """

    number: int
    parent: int | None
    depth: int
    text: str
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    prior: float = 1.0
    confidence: float | None = None
    outcome: bool | None = None
    rank_value: float | None = None
    value: float = 0.0
    reward: float = 0.0
    q: float = 0.0
    below: float = 0.0
    visits: int = 0
    is_terminal: bool = False
    has_end: bool = False
    is_cut: bool = False
    children: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class Standing:
    """What a sibling was worth when its parent was left."""

    number: int
    q: float
    prior: float
    reward: float
    value: float
    visits: int


class Tree:
    """All nodes of one question.

    Attributes:
        nodes: by number; number 0 is the question.
        committed: numbers of the path that the search settled on, the question first.
        frozen: parent -> its children as they stood when the search left it.
    """

    def __init__(self) -> None:
        self.nodes = [Node(0, None, 0, "", (), ())]
        self.committed = [0]
        self.frozen: dict[int, tuple[Standing, ...]] = {}

    @property
    def root(self) -> Node:
        """The question."""
        return self.nodes[0]

    def add(self, parent: Node, text: str, ids: Sequence[int], logps: Sequence[float]) -> Node:
        """A new child of `parent`."""
        rounded = tuple(round(logp, DIGITS) for logp in logps)
        node = Node(len(self.nodes), parent.number, parent.depth + 1, text, tuple(ids), rounded)
        self.nodes.append(node)
        parent.children.append(node.number)
        return node

    def children(self, node: Node) -> list[Node]:
        """In the order in which they were drawn."""
        return [self.nodes[number] for number in node.children]

    def parent(self, node: Node) -> Node:
        """Of any node but the question."""
        assert node.parent is not None
        return self.nodes[node.parent]

    def path(self, node: Node) -> list[Node]:
        """From the question to `node`."""
        found = [node]
        while found[-1].parent is not None:
            found.append(self.parent(found[-1]))
        return found[::-1]

    def ids(self, node: Node) -> tuple[int, ...]:
        """Tokens of the answer up to and with `node`."""
        return tuple(i for one in self.path(node) for i in one.ids)

    def freeze(self, parent: Node) -> None:
        """Notes how the children of `parent` stand."""
        self.frozen[parent.number] = tuple(standing(child) for child in self.children(parent))

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "nodes": [_node_json(node) for node in self.nodes],
            "committed": list(self.committed),
            "frozen": {str(k): [asdict(one) for one in v] for k, v in self.frozen.items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Tree:
        """The tree that `to_json` wrote."""
        tree = cls()
        tree.nodes = [
            Node(**{**one, "ids": tuple(one["ids"]), "logps": tuple(one["logps"])})
            for one in record["nodes"]
        ]
        tree.committed = list(record["committed"])
        tree.frozen = {
            int(k): tuple(Standing(**one) for one in v) for k, v in record["frozen"].items()
        }
        return tree


def _node_json(node: Node) -> dict[str, Any]:
    lists = {name: list(getattr(node, name)) for name in ("ids", "logps", "children")}
    return {**vars(node), **lists}


def standing(node: Node) -> Standing:
    """How `node` stands now."""
    return Standing(node.number, node.q, node.prior, node.reward, node.value, node.visits)


def prior(logps: Sequence[float], length_penalty: float) -> float:
    """exp(sum of log-probs / L^lambda), as the program has it; the paper divides pi by L^lambda."""
    if not logps:
        return 1.0
    return math.exp(sum(logps) / len(logps) ** length_penalty)


def puct(parent: Node, child: Node, exploration: float) -> float:
    """Q + c * p * sqrt(N(parent)) / (1 + N(child))."""
    return child.q + exploration * child.prior * math.sqrt(parent.visits) / (1 + child.visits)


def ucb1(parent: Node, child: Node, exploration: float) -> float:
    """Q + c * sqrt(log N(parent) / (1 + N(child))); log 1 where the parent is new."""
    seen = math.log(max(parent.visits, 1))
    return child.q + exploration * math.sqrt(seen / (1 + child.visits))


def back_up_weighted(
    tree: Tree, path: Sequence[Node], gamma: float, root_count: Literal["once", "twice"]
) -> None:
    """One more visit of every node of `path`, values from the leaf up.

    Q = r + gamma * V; V = sum of max(1, N) * Q over the children / sum of max(1, N): a child that
    was never visited counts as if it had been once.

    Args:
        tree: that the path belongs to.
        path: from where the simulation started to its leaf.
        gamma: discount.
        root_count: visits that are added to the path's first node.
    """
    for node in reversed(path):
        children = tree.children(node)
        if children:
            weights = [max(1, child.visits) for child in children]
            total = sum(w * child.q for w, child in zip(weights, children, strict=True))
            node.below = total / sum(weights)
        node.visits += 1
        node.q = node.reward + gamma * node.below
    path[0].visits += root_count == "twice"


def back_up_mean(path: Sequence[Node], gamma: float) -> None:
    """One more visit of every node of `path`; V is the running mean of what came behind it."""
    behind = 0.0
    for node in reversed(path):
        node.below = (node.below * node.visits + behind) / (node.visits + 1)
        node.visits += 1
        node.q = node.reward + gamma * node.below
        behind = node.reward + gamma * behind


def back_up_outcome(path: Sequence[Node], outcome: float) -> None:
    """One more visit of every node of `path`; Q is the running mean of the outcomes, from 0."""
    for node in path:
        node.q = (node.q * node.visits + outcome) / (node.visits + 1)
        node.visits += 1
