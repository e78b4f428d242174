import json
import math

import pytest
import torch

from align.errors import NumericalError
from align.estimates import Estimate
from align.types import Logps, Pair
from align_eval.metrics import (
    displacement,
    explicit_reward_accuracy,
    implicit_reward_accuracy,
    length_drift,
    preference_metrics,
    reward_accuracy,
)


def logps(*totals):
    """One completion per total, of two tokens and one masked slot that must not count."""
    token = torch.tensor([[total - 1.0, 1.0, 1e9] for total in totals])
    mask = torch.tensor([[True, True, False]] * len(totals))
    return Logps(token, mask)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_missing_log_prob_is_never_averaged(bad):
    with pytest.raises(NumericalError, match="chosen_logps"):
        preference_metrics(
            Pair(logps(0.0, bad), logps(0.0, 0.0)), Pair(logps(0.0, 0.0), logps(0.0, 0.0))
        )


def test_preference_metrics_by_hand():
    # rho chosen: -1, -2, 3, 0;  rho rejected: -4, 1, 1, 0;  margins: 3, -3, 2, 0.
    estimates = preference_metrics(
        policy=Pair(logps(-11.0, -12.0, -7.0, -10.0), logps(-24.0, -19.0, -19.0, -20.0)),
        reference=Pair(logps(-10.0, -10.0, -10.0, -10.0), logps(-20.0, -20.0, -20.0, -20.0)),
    )
    values = {name: (estimate.value, estimate.n) for name, estimate in estimates.items()}
    assert values == {
        "accuracy": (pytest.approx(2 / 3), 3),
        "ties": (0.25, 4),
        "chosen_logps": (-10.0, 4),
        "rejected_logps": (-20.5, 4),
        "chosen_logratio": (0.0, 4),
        "rejected_logratio": (-0.5, 4),
        "margin": (0.5, 4),
    }


def test_a_model_against_itself_has_ties_and_no_accuracy():
    same = Pair(logps(-1.0, -2.0), logps(-3.0, -4.0))
    estimates = preference_metrics(same, same)
    assert estimates["accuracy"] == Estimate(None, None, None, 0)
    assert estimates["ties"].value == 1.0
    assert estimates["margin"].value == 0.0


def test_rounding_is_a_tie():
    reference = Pair(logps(-300.0), logps(-300.0))
    estimates = preference_metrics(Pair(logps(-300.00003), logps(-300.0)), reference)
    assert estimates["ties"].value == 1.0


def test_displacement_by_hand():
    # Moved by -1, -2, 3 and less than rounding, over two tokens each.
    found = displacement(logps(-11.0, -12.0, -7.0, -10.00001), logps(*[-10.0] * 4))
    assert found["chosen_logratio"].value == pytest.approx(0.0, abs=1e-4)
    assert found["chosen_logratio_per_token"].value == pytest.approx(0.0, abs=1e-4)
    assert (found["displaced"].value, found["displaced"].n) == (0.5, 4)
    one = displacement(logps(-13.0), logps(-10.0))
    assert one["chosen_logratio_per_token"].value == pytest.approx(-1.5)


def test_length_drift_by_hand():
    # Gaps 10, -5, 0; logs ln 2, ln(1/2), 0; one of the two unequal ones is longer.
    found = length_drift([20, 5, 8], [10, 10, 8])
    assert found["length"].value == pytest.approx(11.0)
    assert found["length_difference"].value == pytest.approx(5 / 3)
    assert found["length_logratio"].value == pytest.approx(0.0, abs=1e-12)
    assert (found["longer"].value, found["longer"].n) == (0.5, 2)
    assert length_drift([0], [4])["length_logratio"].value == pytest.approx(-math.log(4))
    with pytest.raises(ValueError, match="1 lengths do not pair with 2"):
        length_drift([1], [1, 2])


def test_reward_accuracy_counts_ties_and_failures_apart():
    found = reward_accuracy([2.0, 1.0, 3.0, None, 0.0, 5.0], [1.0, 2.0, 3.0, 1.0, None, 4.0])
    assert (found.accuracy.value, found.accuracy.n) == (pytest.approx(2 / 3), 3)
    assert (found.ties.value, found.ties.n) == (0.25, 4)
    assert found.n_failed == 2
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(NumericalError, match="reward: 1 of 2 rows"):
        reward_accuracy([math.nan, 1.0], [0.0, 0.0])


def test_the_implicit_reward_is_the_preference_metrics_accuracy():
    policy = Pair(logps(-11.0, -12.0, -7.0, -10.0), logps(-24.0, -19.0, -19.0, -20.0))
    reference = Pair(logps(*[-10.0] * 4), logps(*[-20.0] * 4))
    found = implicit_reward_accuracy(policy, reference)
    expected = preference_metrics(policy, reference)
    assert found.accuracy == expected["accuracy"]
    assert found.ties == expected["ties"]
    assert found.n_failed == 0


def test_a_reward_model_is_measured_in_and_out_of_its_distribution():
    from align.data.messages import Message
    from align.data.pairs import PreferencePair
    from align.judges.base import JudgeFailed
    from align.judges.rule import RuleJudge

    def pair(chosen, rejected, row):
        texts = {"chosen": chosen, "rejected": rejected}
        sides = {k: (Message(role="assistant", content=v),) for k, v in texts.items()}
        prompt = (Message(role="user", content="q"),)
        return PreferencePair(prompt=prompt, source="t", row=row, **sides)

    def by_length(_, text):
        return JudgeFailed("too_long", "") if len(text) > 5 else float(len(text))

    splits = {
        "in": [pair("aaa", "b", 1), pair("aa", "b", 2)],
        "out": [pair("a", "bbb", 1), pair("aa", "b", 2), pair("aaaaaa", "b", 3), pair("a", "b", 4)],
    }
    found = explicit_reward_accuracy(RuleJudge("length", by_length), splits)
    assert found["in"].accuracy.value == 1.0
    assert (found["out"].accuracy.value, found["out"].accuracy.n) == (0.5, 2)
    assert (found["out"].ties.value, found["out"].n_failed) == (pytest.approx(1 / 3), 1)
