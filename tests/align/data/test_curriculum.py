"""How many of a round's prompts each source gets."""

import math

import pytest

from align.data.curriculum import (
    UNSEEN,
    advantages,
    allotted,
    folded,
    learnability,
    shares,
)


def test_before_anything_was_scored_all_shares_are_equal():
    assert shares({"a": UNSEEN, "b": UNSEEN, "c": UNSEEN}, 0.1) == pytest.approx(
        dict.fromkeys("abc", 1 / 3)
    )


def test_shares_by_hand():
    """N = 10, n = 7 and 3: U = L + sqrt(2 ln 11 / 8), L + sqrt(2 ln 11 / 4).

    sqrt(4.795791 / 8) = 0.774257, sqrt(4.795791 / 4) = 1.094965; with L = 0.5 and 0.25 the scores
    are 1.274257 and 1.344965; exp(-0.070708 / 0.1) = 0.493082; 0.493082 / 1.493082 = 0.330245.
    """
    arms = {
        "a": {"seen": 7, "window": [1.0, 0.0], "place": 0},
        "b": {"seen": 3, "window": [0.25], "place": 0},
    }
    assert learnability(arms["a"]) == 0.5
    found = shares(arms, 0.1)
    assert found["a"] == pytest.approx(0.330245, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1.0)
    # Hot, nothing counts; cold, the higher score takes all.
    assert shares(arms, 1e9)["a"] == pytest.approx(0.5)
    assert shares(arms, 1e-6) == {"a": 0.0, "b": 1.0}


def test_what_teaches_more_and_what_was_asked_less_gets_more():
    def arm(seen, level):
        return {"seen": seen, "window": [level], "place": 0}

    found = shares({"much": arm(50, 0.9), "little": arm(50, 0.1), "new": arm(5, 0.1)}, 0.5)
    assert found["much"] > found["little"]
    assert found["new"] > found["little"]


def test_advantages_are_those_of_grpo():
    """Mean 1/4, standard deviation sqrt(3)/4: three times -1/sqrt(3), once sqrt(3)."""
    assert advantages([0.0, 0.0, 1.0, 0.0]) == pytest.approx(
        [-(3**-0.5), -(3**-0.5), 3**0.5, -(3**-0.5)]
    )
    # Always right, or always wrong: nothing to be learned. One completion says nothing at all.
    assert advantages([1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0]
    assert advantages([1.0]) == advantages([]) == []
    # In units of its own deviation: 2 sqrt(p (1 - p)) in the mean, whatever the scale.
    large = advantages([0.0, 5.0, 5.0, 5.0])
    assert sum(map(abs, large)) / 4 == pytest.approx(2 * math.sqrt(3 / 16))


def test_the_window_keeps_the_last_and_the_count_keeps_all():
    arms = {"a": {"seen": 2, "window": [0.1, 0.2], "place": 4}, "b": UNSEEN}
    # Of five completions three gave no score: they were drawn all the same.
    found = folded(arms, {"a": 5}, {"a": [-0.3, 0.4]}, window=3)
    assert found["a"] == {"seen": 7, "window": [0.2, 0.3, 0.4], "place": 4}
    assert found["b"] == UNSEEN


@pytest.mark.parametrize(
    ("share", "sizes", "wanted", "expected"),
    [
        # 2.5, 1.5, 1: the larger remainder first, of equal ones the earlier source.
        ((0.5, 0.3, 0.2), (9, 9, 9), 5, (3, 1, 1)),
        ((1 / 3, 1 / 3, 1 / 3), (9, 9, 9), 4, (2, 1, 1)),
        # What the first lacks goes to the others by their shares, 3 : 2.
        ((0.5, 0.3, 0.2), (0, 9, 9), 5, (0, 3, 2)),
        ((1.0, 0.0, 0.0), (2, 9, 9), 6, (2, 2, 2)),
        ((0.5, 0.3, 0.2), (1, 1, 1), 5, (1, 1, 1)),
    ],
)
def test_prompts_are_whole(share, sizes, wanted, expected):
    names = "abc"
    found = allotted(
        dict(zip(names, share, strict=True)), dict(zip(names, sizes, strict=True)), wanted
    )
    assert tuple(found.values()) == expected
