"""PF-PPO's filters as weights, and how well a reward says what is right."""

import math
import random
from collections import Counter

import pytest

from align.data.completions import JudgedPrompt
from align.data.messages import Message
from align.stages.filters import FILTERS, drawn_pair, weights
from align.stages.reliability import BINS, known_groups, r_squared, reliability

REWARDS = [0.3, 1.2, -0.5, 0.9, 0.1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("best_of_n", [0, 1, 0, 0, 0]),
        # 1/2, then 1 / (2 * 4).
        ("best_random", [0.125, 0.5, 0.125, 0.125, 0.125]),
        ("best_worst", [0, 0.5, 0.5, 0, 0]),
    ],
)
def test_weights_of_the_paper_for_five_samples(rule, expected):
    assert weights(REWARDS, rule) == tuple(expected)


@pytest.mark.parametrize("rule", FILTERS)
def test_weights_sum_to_1_and_heed_nothing_but_the_order(rule):
    draw = random.Random(0)
    for n in range(1, 12):
        scores = [draw.gauss(0, 1) for _ in range(n)]
        found = weights(scores, rule)
        assert sum(found) == pytest.approx(1.0, abs=1e-12)
        assert min(found) >= 0
        for mapped in ([math.exp(x) for x in scores], [1e6 * x - 3 for x in scores]):
            assert weights(mapped, rule) == found
        # Where the samples stand changes nothing but the places.
        order = draw.sample(range(n), n)
        assert weights([scores[i] for i in order], rule) == tuple(found[i] for i in order)
    assert weights([-7.0], rule) == (1.0,)


def test_of_two_samples_random_is_worst():
    assert weights([0.0, 1.0], "best_random") == weights([0.0, 1.0], "best_worst") == (0.5, 0.5)


def test_of_equal_scores_the_earlier_sample_stands_higher():
    assert weights([1.0, 2.0, 2.0, 1.0], "best_of_n") == (0, 1, 0, 0)
    assert weights([1.0, 2.0, 2.0, 1.0], "best_worst") == (0, 0.5, 0, 0.5)
    assert weights([3.0] * 3, "best_worst") == (0.5, 0, 0.5)


def test_a_score_that_is_no_number_is_refused():
    for scores in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="scores that are numbers"):
            weights(scores, "best_random")


def test_a_drawn_pair_has_every_sample_twice_as_often_as_its_weight():
    draw = random.Random(1)
    for rule in ("best_random", "best_worst"):
        found = Counter(i for _ in range(4000) for i in drawn_pair(REWARDS, rule, draw))
        expected = [2 * w for w in weights(REWARDS, rule)]
        assert [found[i] / 4000 for i in range(5)] == pytest.approx(expected, abs=0.03)


def test_r_squared_by_hand():
    """Three bins of equal weight at rewards 0, 1, 2 with 1/4, 1/4 and 3/4 right.

    x - mean -1, 0, 1; y - mean -1/6, -1/6, 1/3: xy = 1/2, xx = 2, yy = 1/36 + 1/36 + 1/9 = 1/6;
    R^2 = 1/4 / (2 / 6) = 3/4.
    """
    shares = {0.0: 1, 1.0: 1, 2.0: 3}
    samples = [(x, float(k < n), 1.0) for x, n in shares.items() for k in range(4)]
    assert r_squared(samples) == pytest.approx(0.75, abs=1e-12)
    # A sample of weight 3 counts as three, one of 0 not at all.
    heavy = [(x, float(right), w) for x, n in shares.items() for right, w in ((1, n), (0, 4 - n))]
    assert r_squared([*heavy, (9.0, 1.0, 0.0)]) == pytest.approx(0.75, abs=1e-12)


def test_r_squared_is_1_on_a_line_and_small_for_noise():
    draw = random.Random(2)
    line = [(x, float(draw.random() < x), 1.0) for x in [draw.random() for _ in range(20_000)]]
    noise = [(x, float(draw.random() < 0.5), 1.0) for x, _, _ in line]
    assert r_squared(line) > 0.99
    assert r_squared(noise) < 0.6
    # Cut by rank: this many bins, whatever the rewards' law.
    ranks = {int(i / len(line) * BINS) for i in range(len(line))}
    assert len(ranks) == BINS


def test_r_squared_is_not_made_up():
    two = [(x, float(x == y), 1.0) for x in (0.0, 1.0) for y in (0.0, 1.0)]
    assert r_squared(two) is None
    assert r_squared([(x, 1.0, 1.0) for x in (0.0, 1.0, 2.0)]) is None
    assert r_squared([]) is None
    assert reliability([]) == {}


def test_a_reward_that_errs_in_the_middle_is_more_reliable_behind_a_filter():
    """What the paper's choice rests on: both ends are told apart, the middle is a coin."""
    draw = random.Random(3)
    groups = []
    for _ in range(3000):
        rewards = [draw.random() for _ in range(6)]
        shares = [1.0 if x > 0.8 else 0.0 if x < 0.2 else 0.5 for x in rewards]
        groups.append((rewards, [float(draw.random() < p) for p in shares]))
    found = reliability(groups)
    assert found.keys() == {"r2_all", *(f"r2_{rule}" for rule in FILTERS)}
    assert found["r2_best_worst"] > found["r2_all"] + 0.05


def judged(question, texts, source="world:sums/train/seed-0", row=1):
    return JudgedPrompt(
        prompt=(Message(role="user", content=question),),
        source=source,
        row=row,
        sampler="s",
        completions=tuple(texts),
        scores=None,
        judge="j",
        calls=0,
    )


def test_a_world_knows_what_is_right():
    rows = [judged("1+2+3?", ["1+2=3\n3+3=6\n6", "6"]), judged("how?", ["6"])]
    numbers = [(0.25, 0.5), (1.0,)]
    found = known_groups(rows, numbers, "world:sums")
    # The second prompt is no sum: nobody knows.
    assert found == [([0.25, 0.5], [1.0, 0.0])]
    assert known_groups(rows, [(0.25, None), (1.0,)], "world:sums") == [([0.25], [1.0])]
    assert known_groups(rows, numbers, "prompts.jsonl") == []
    assert known_groups(rows, numbers, "world:styles") == []
