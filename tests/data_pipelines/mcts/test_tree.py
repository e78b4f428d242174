import json
import math
import random

import pytest

from align_data.mcts.tree import (
    Tree,
    back_up_mean,
    back_up_outcome,
    back_up_weighted,
    prior,
    puct,
    ucb1,
)


def grown(values, branching):
    """A full tree with the given leaf values v, potential rewards, and v = 0 above the leaves."""
    tree = Tree()
    level = [tree.root]
    for _ in range(int(math.log(len(values), branching) + 0.5)):
        level = [tree.add(node, "x", (1,), (0.0,)) for node in level for _ in range(branching)]
    for node, value in zip(level, values, strict=True):
        node.value = node.reward = node.q = value
        node.is_terminal = True
    return tree, level


def test_prior_puts_the_length_inside_the_exponent():
    # Four tokens of -0.5: exp(-2 / 4^1.25) = exp(-2 / 5.65685) = exp(-0.353553).
    assert prior((-0.5,) * 4, 1.25) == pytest.approx(math.exp(-0.3535534), rel=1e-6)
    assert prior((-0.5,) * 4, 0.0) == pytest.approx(math.exp(-2))
    assert prior((), 1.25) == 1.0


def test_puct_and_ucb1_by_hand():
    tree = Tree()
    child = tree.add(tree.root, "a", (1,), (0.0,))
    tree.root.visits, child.visits, child.q, child.prior = 9, 2, 0.25, 0.5
    # 0.25 + 2 * 0.5 * 3 / 3 = 1.25
    assert puct(tree.root, child, 2.0) == pytest.approx(1.25)
    # 0.25 + 2 * sqrt(log 9 / 3) = 0.25 + 2 * sqrt(0.732408) = 1.961617
    assert ucb1(tree.root, child, 2.0) == pytest.approx(1.961617, abs=1e-6)
    tree.root.visits = child.visits = 0
    assert ucb1(tree.root, child, 2.0) == 0.25


def test_weighted_back_up_by_hand():
    tree = Tree()
    a, b = (tree.add(tree.root, text, (1,), (0.0,)) for text in "ab")
    a.reward, b.reward = 1.0, 0.5
    b.q = 0.5
    back_up_weighted(tree, [tree.root, a], 1.0, "once")
    # b was never visited and counts as once: (1 * 1 + 1 * 0.5) / 2.
    assert (a.q, a.visits, tree.root.below, tree.root.visits) == (1.0, 1, 0.75, 1)
    back_up_weighted(tree, [tree.root, a], 1.0, "twice")
    # (2 * 1 + 1 * 0.5) / 3; the start of the path is counted twice.
    assert tree.root.below == pytest.approx(2.5 / 3)
    assert (a.visits, b.visits, tree.root.visits) == (2, 0, 3)
    back_up_weighted(tree, [tree.root, b], 0.5, "once")
    assert b.q == 0.5
    assert tree.root.q == pytest.approx(0.5 * tree.root.below)


@pytest.mark.parametrize("seed", range(3))
def test_mean_back_up_is_the_mean_of_the_leaves_seen_at_every_step(seed):
    draw = random.Random(seed)
    tree, _ = grown([draw.uniform(-1, 1) for _ in range(27)], 3)
    seen = []
    for _ in range(60):
        path = [tree.root]
        while path[-1].children:
            path.append(draw.choice(tree.children(path[-1])))
        seen.append(path[-1].value)
        back_up_mean(path, 1.0)
        total = tree.root.below + tree.root.value
        assert total == pytest.approx(sum(seen) / len(seen), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_back_up_telescopes_to_the_pseudo_visit_mean(seed):
    draw = random.Random(seed)
    tree, leaves = grown([draw.uniform(-1, 1) for _ in range(9)], 3)
    for node in tree.children(tree.root):
        node.value = node.reward = node.q = draw.uniform(-1, 1)
        for child in tree.children(node):
            child.reward = child.value - node.value
            child.q = child.reward

    def mean(node):
        children = tree.children(node)
        if not children or not node.visits:
            return node.value
        weights = [max(1, child.visits) for child in children]
        return sum(w * mean(c) for w, c in zip(weights, children, strict=True)) / sum(weights)

    seen = []
    for step in range(200):
        path = [tree.root]
        while path[-1].children:
            path.append(draw.choice(tree.children(path[-1])))
        seen.append(path[-1])
        back_up_weighted(tree, path, 1.0, "once")
        assert tree.root.below + tree.root.value == pytest.approx(mean(tree.root), abs=1e-9)
        if step == 2:
            plain = sum(leaf.value for leaf in seen) / len(seen)
            assert abs(tree.root.below - plain) > 1e-3
    assert all(leaf.visits for leaf in leaves)
    plain = sum(leaf.value for leaf in seen) / len(seen)
    assert tree.root.below + tree.root.value == pytest.approx(plain, abs=1e-9)


def test_outcomes_are_averaged_from_zero():
    tree = Tree()
    child = tree.add(tree.root, "a", (1,), (0.0,))
    for outcome in (1.0, 0.0, 1.0, 1.0):
        back_up_outcome([tree.root, child], outcome)
    assert (child.q, child.visits, tree.root.q, tree.root.visits) == (0.75, 4, 0.75, 4)


def test_a_tree_is_the_same_after_json():
    tree, leaves = grown([0.1, -0.2, 0.3, 0.4], 2)
    tree.freeze(tree.root)
    tree.committed.append(tree.root.children[1])
    again = Tree.from_json(json.loads(json.dumps(tree.to_json())))
    assert again.nodes == tree.nodes
    assert again.committed == [0, 2]
    assert again.frozen == tree.frozen
    assert again.ids(again.nodes[leaves[3].number]) == (1, 1)
