import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_data.uncertainty.candidates import candidate_pairs


def places(rewards, rule):
    return [(c.chosen, c.rejected) for c in candidate_pairs(rewards, rule)]


def test_six_responses_give_nine_pairs_of_the_halves():
    # Ranked: 5 (.9), 2 (.8), 0 (.5), 4 (.4), 1 (.3), 3 (.1)
    found = candidate_pairs([0.5, 0.3, 0.8, 0.1, 0.4, 0.9], "halves")
    assert [(c.chosen, c.rejected) for c in found] == [
        (high, low) for high in (5, 2, 0) for low in (4, 1, 3)
    ]
    assert (found[2].rank_chosen, found[2].rank_rejected) == (0, 5)
    assert found[2].margin == pytest.approx(0.8)


def test_the_programs_rule_takes_any_two_of_the_best_and_worst_two():
    assert places([0.5, 0.3, 0.8, 0.1, 0.4, 0.9], "extremes") == [
        (5, 2), (5, 1), (5, 3), (2, 1), (2, 3), (1, 3),
    ]  # fmt: skip
    assert places([1.0, 3.0, 2.0], "extremes") == [(1, 2), (1, 0), (2, 0)]


def test_of_an_odd_number_the_halves_leave_the_middle_out():
    assert places([3.0, 2.0, 1.0], "halves") == [(0, 2)]


def test_responses_without_a_reward_take_no_part():
    assert places([None, 2.0, None, 1.0], "halves") == [(1, 3)]
    assert places([None, 2.0], "halves") == []
    assert places([], "extremes") == []


def test_equal_rewards_are_candidates_with_no_margin():
    assert [c.margin for c in candidate_pairs([1.0] * 6, "halves")] == [0.0] * 9


@given(st.lists(st.integers(-3, 3).map(float), max_size=9), st.sampled_from(["halves", "extremes"]))
def test_chosen_never_has_the_lower_reward(rewards, rule):
    found = candidate_pairs(rewards, rule)
    assert all(c.margin == rewards[c.chosen] - rewards[c.rejected] >= 0 for c in found)
    assert all(c.chosen != c.rejected for c in found)
    assert len(set(map(repr, found))) == len(found) <= max(9, (len(rewards) // 2) ** 2)
