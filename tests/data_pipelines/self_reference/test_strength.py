"""Decisions from rounds made by hand, with their arithmetic."""

import math

import pytest

from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.strength import Round, decide


def one(k, verdict, ppl=None, mean_logp=None, failure=None):
    order = "12" if k % 2 == 0 else "21"
    return Round(k, order, "x", verdict, "line", failure, mean_logp, ppl)


def settings(**given):
    return SelfReferenceSettings.model_validate({"strength": "votes", **given})


def test_the_verdicts_of_the_swapped_order_are_of_the_other_response():
    # Order 21 shows response 2 first: "second" there is response 1.
    found = decide([one(0, "first"), one(1, "second")], settings())
    assert (found.chosen, found.votes) == (1, (2, 0))
    found = decide([one(0, "second"), one(1, "first")], settings())
    assert (found.chosen, found.votes) == (2, (0, 2))


def test_a_judge_of_places_decides_nothing():
    found = decide([one(0, "first"), one(1, "first")], settings())
    assert found.reason == "inconsistent"


def test_a_missing_verdict_costs_its_partner_too():
    # 2: for 1; 3: none; so 0 and 1 alone count, which are for response 2.
    rounds = [one(0, "second"), one(1, "first"), one(2, "first"), one(3, None, failure="refused")]
    found = decide(rounds, settings(rounds=4, decide="majority"))
    assert (found.chosen, found.votes, found.preference) == (2, (0, 2), 1.0)
    both = decide(rounds, settings(rounds=4))
    assert both.reason == "failed"
    assert "refused" in both.detail
    nothing = decide([one(0, None), one(1, "first")], settings())
    assert nothing.reason == "failed"


def test_majority_and_its_ties():
    four = settings(rounds=4, decide="majority")
    three_to_one = [one(0, "first"), one(1, "second"), one(2, "first"), one(3, "first")]
    found = decide(three_to_one, four)
    # 3 of 4 votes; margin (3 - 1) / 4.
    assert (found.chosen, found.preference, found.margin) == (1, 0.75, 0.5)
    two_to_two = [one(0, "first"), one(1, "first"), one(2, "first"), one(3, "first")]
    assert decide(two_to_two, four).reason == "tie"


def test_forced_verdicts_golden():
    # PPL (e, e^3) -> s_0 = 3 - 1 = 2;  PPL (e^2, e) -> s_1 = 1 - 2 = -1;  s = 1/2.
    e = math.e
    rounds = [one(0, "first", (e, e**3)), one(1, "first", (e**2, e))]
    found = decide(rounds, settings(decide="soft", strength="forced_verdict"))
    assert found.chosen == 1
    assert found.margin == pytest.approx(0.5, abs=1e-12)
    # P1 = PPL1^-1 / (PPL1^-1 + PPL2^-1) with log PPL2 - log PPL1 = 1/2.
    assert found.preference == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-12)
    clipped = settings(decide="soft", strength="forced_verdict", margin_max=0.25)
    assert decide(rounds, clipped).margin == 0.25


@pytest.mark.parametrize("bias", [-20.0, -1.0, 0.0, 3.0, 20.0])
def test_a_bias_for_the_place_cancels(bias):
    # Log-odds of the first one shown: d + b, then -d + b; of response 1: d + b, d - b.
    d = 0.7
    rounds = [
        one(0, "first" if d + bias > 0 else "second", (1.0, math.exp(d + bias))),
        one(1, "first" if -d + bias > 0 else "second", (1.0, math.exp(d - bias))),
    ]
    found = decide(rounds, settings(decide="soft", strength="forced_verdict"))
    assert found.chosen == 1
    assert found.margin == pytest.approx(d, abs=1e-6)
    if abs(bias) > d:
        hard = decide(rounds, settings(strength="forced_verdict"))
        assert hard.reason == "inconsistent"


def test_verdicts_against_their_own_strength_make_no_pair():
    rounds = [one(0, "first", (2.0, 1.0)), one(1, "second", (2.0, 1.0))]
    assert all(round_.contradicts_itself for round_ in rounds)
    found = decide(rounds, settings(strength="forced_verdict"))
    assert found.reason == "inconsistent"


def test_pooled_feedback_golden():
    # mass_1 = (e^-1 + e^-2 + e^-1) / 4, mass_2 = e^-3 / 4; P1 and margin from their ratio.
    rounds = [
        one(0, "first", mean_logp=-1.0),
        one(1, "second", mean_logp=-2.0),
        one(2, "first", mean_logp=-1.0),
        one(3, "first", mean_logp=-3.0),
    ]
    found = decide(rounds, settings(rounds=4, decide="majority", strength="pooled_feedback"))
    m1, m2 = 2 * math.exp(-1) + math.exp(-2), math.exp(-3)
    assert found.preference == pytest.approx(m1 / (m1 + m2), abs=1e-12)
    assert found.margin == pytest.approx((m1 - m2) / (m1 + m2), abs=1e-12)


def test_equal_log_odds_are_too_close():
    rounds = [one(0, "first", (1.0, 1.0)), one(1, "second", (1.0, 1.0))]
    assert decide(rounds, settings(strength="forced_verdict")).reason == "small_margin"
    bare = settings(strength="forced_verdict", min_margin=0)
    assert decide(rounds, bare).reason == "small_margin"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"rounds": 3}, "odd"),
        ({"rounds": 3, "decide": "soft", "strength": "forced_verdict"}, "odd"),
        ({"decide": "majority"}, "rounds: 4"),
        ({"decide": "soft"}, "forced_verdict"),
        ({"verdict": "forced", "parse": "line_or_sentence"}, "take it out"),
    ],
)
def test_settings_that_cannot_stand_together(given, word):
    with pytest.raises(ValueError, match=word):
        settings(**given)
