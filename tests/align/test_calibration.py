"""Reliability tables and the expected calibration error, on cases counted by hand."""

import math

import pytest
import torch

from align.calibration import calibration_error, reliability


def log_odds(*probabilities: float) -> torch.Tensor:
    return torch.tensor([math.log(p / (1 - p)) for p in probabilities], dtype=torch.float64)


def test_a_model_that_is_as_often_right_as_it_says_has_no_error() -> None:
    """Nine pairs at 8/9, of which eight are right; six at 2/3, of which four are."""
    difference = log_odds(*[8 / 9] * 8, 1 / 9, *[2 / 3] * 4, *[1 / 3] * 2)
    table = reliability(difference, torch.ones(15))
    filled = [(one.n, one.confidence, one.agreement) for one in table if one.n]
    assert filled == [
        (6, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        (9, pytest.approx(8 / 9), pytest.approx(8 / 9)),
    ]
    assert calibration_error(table) == pytest.approx(0, abs=1e-12)


def test_the_error_of_a_model_that_is_too_sure() -> None:
    # Four pairs at 97 %, two right: 0.47 too sure. Four at 57 %, three right: 0.18 too modest.
    difference = log_odds(0.97, 0.97, 0.03, 0.03, 0.57, 0.57, 0.57, 0.43)
    error = calibration_error(reliability(difference, torch.ones(8)))
    assert error == pytest.approx((4 * 0.47 + 4 * 0.18) / 8)


def test_soft_labels_count_as_shares() -> None:
    # It says 72 % for the first, annotators 40 %: of the named winner 0.72 against 0.4.
    table = reliability(log_odds(0.72), torch.tensor([0.4]))
    assert calibration_error(table) == pytest.approx(0.32)
    # And 72 % for the second where annotators give the first 40 %, the second 60 %.
    other = reliability(log_odds(0.28), torch.tensor([0.4]))
    assert calibration_error(other) == pytest.approx(0.12)


def test_where_no_winner_is_named_nothing_is_wrong() -> None:
    table = reliability(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))
    assert [(one.n, one.confidence, one.agreement) for one in table[:1]] == [(3, 0.5, 0.5)]
    assert calibration_error(table) == 0


def test_the_order_of_the_answers_does_not_matter() -> None:
    torch.manual_seed(0)
    difference, label = torch.randn(50), torch.rand(50)
    swapped = calibration_error(reliability(-difference, 1 - label))
    assert calibration_error(reliability(difference, label)) == pytest.approx(swapped)


def test_certainty_has_a_bin_and_no_pair_has_no_error() -> None:
    table = reliability(torch.tensor([1e4, 40.0]), torch.ones(2))
    assert table[-1].n == 2
    assert (table[0].low, table[-1].high, len(table)) == (0.5, 1.0, 10)
    assert calibration_error(reliability(torch.zeros(0), torch.zeros(0))) is None
    assert table[0].to_json()["agreement"] is None
