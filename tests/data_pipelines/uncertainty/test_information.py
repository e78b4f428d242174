import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_data.uncertainty.information import (
    Estimate,
    entropy,
    estimate_of,
    mutual_information,
)

PASSES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_equal_passes_carry_no_information():
    assert mutual_information([0.3] * 10) < 1e-15
    assert mutual_information([1.0, 1.0]) == 0.0


def test_passes_certain_of_opposite_sides_carry_log_2():
    assert mutual_information([0.0, 1.0]) == pytest.approx(math.log(2), abs=1e-15)


def test_a_golden_value():
    # mean 1/2: log 2; H(1/4) = H(3/4) = 1/4 log 4 + 3/4 log 4/3 = 0.562335...; B = 0.130812...
    one = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert mutual_information([0.25, 0.75]) == pytest.approx(math.log(2) - one, abs=1e-15)
    assert mutual_information([0.25, 0.75]) == pytest.approx(0.1308120, abs=1e-7)


@given(PASSES)
def test_between_0_and_the_entropy_of_the_mean(passes):
    mean = math.fsum(passes) / len(passes)
    assert 0.0 <= mutual_information(passes) <= entropy(min(max(mean, 0.0), 1.0)) + 1e-12
    assert entropy(min(max(mean, 0.0), 1.0)) <= math.log(2) + 1e-12


@given(PASSES)
def test_the_other_side_sees_the_same_information(passes):
    assert mutual_information([1 - p for p in passes]) == pytest.approx(
        mutual_information(passes), abs=1e-9
    )


def test_no_pass_is_refused():
    with pytest.raises(ValueError, match="at least one pass"):
        mutual_information([])


def test_swapping_the_responses_turns_p_into_1_minus_p():
    # A habit of .2 towards the response read first.
    straight, swapped = [0.9, 0.7], [0.5, 0.3]
    there, back = estimate_of(straight, swapped), estimate_of(swapped, straight)
    assert there.passes == pytest.approx([0.7, 0.7])
    assert [p + q for p, q in zip(there.passes, back.passes, strict=True)] == pytest.approx([1, 1])
    assert there.mean + back.mean == pytest.approx(1)
    assert there.information == pytest.approx(back.information, abs=1e-15)
    assert (there.straight, there.swapped) == (2, 0)


def test_one_order_takes_the_habit_as_it_is():
    one = estimate_of([0.9, 0.7], None)
    assert (one.passes, one.order, one.swapped) == ((0.9, 0.7), "chosen_first", None)


@pytest.mark.parametrize(
    ("passes", "agrees"),
    [((0.9, 0.1, 0.6), True), ((0.4, 0.1, 0.9), False), ((0.9, 0.1), False), ((0.5,), False)],
)
def test_agreement_is_a_majority_and_no_tie(passes, agrees):
    assert Estimate(passes, "both", 0, 0).agrees is agrees


def test_what_is_saved_can_be_computed_again():
    saved = Estimate((0.9, 0.6, 0.7), "both", 3, 0).to_json()
    assert saved["bald"] == mutual_information(saved["p_T"])
    assert saved["p_bar"][0] == pytest.approx(2.2 / 3)
    # (1/6^2 + (-2/15)^2 + (-1/30)^2) / 3, deviations of .9, .6, .7 from 2.2 / 3
    assert saved["p_var"][0] == pytest.approx((0.0277778 + 0.0177778 + 0.0011111) / 3, abs=1e-6)
    assert (saved["T"], saved["majority"], saved["agree"]) == (3, 0, True)
