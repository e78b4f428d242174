import pytest

from align.judges.base import JudgeFailed, Prefers, Refused, Tie, opposite, probability


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Prefers("first", 0.75), 0.75),
        (Prefers("second", 0.0), 0.0),
        (Tie(), 0.5),
        (Refused("no"), None),
        (JudgeFailed("unparsable", "no verdict"), None),
    ],
)
def test_no_number_stands_for_a_failure(verdict, expected):
    assert probability(verdict) == expected


def test_the_opposite_changes_the_winner_and_leaves_failures_alone():
    assert opposite(Prefers("first", 0.75)) == Prefers("second", 0.25)
    for verdict in (Tie(), Refused("no"), JudgeFailed("unparsable", "no verdict")):
        assert opposite(verdict) == verdict


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_probability_lies_between_0_and_1(value):
    with pytest.raises(ValueError, match="must be in"):
        Prefers("first", value)
