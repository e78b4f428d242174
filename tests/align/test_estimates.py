import json
import math

import pytest
import torch

from align.errors import NumericalError
from align.estimates import Estimate, kl_divergence, mean, proportion, student_quantile
from align.types import Logps


def test_wilson_interval_by_hand():
    # 8 of 10, z = 1.959964, z^2 = 3.841459:
    # centre (0.8 + 3.841459/20) / (1 + 0.3841459) = 0.9920730 / 1.3841459 = 0.7167402
    # half   1.959964 / 1.3841459 * sqrt(0.016 + 3.841459/400) = 1.4160097 * 0.1600114 = 0.2265777
    estimate = proportion(8, 10)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.4901625, abs=2e-6)
    assert estimate.high == pytest.approx(0.9433179, abs=2e-6)
    assert estimate.n == 10


def test_wilson_interval_at_the_ends():
    # 0 of 20: high = z^2 / (n + z^2) = 3.841459 / 23.841459.
    assert proportion(0, 20).low == 0.0
    assert proportion(0, 20).high == pytest.approx(0.1611252, abs=1e-6)
    assert proportion(20, 20).high == 1.0
    assert proportion(20, 20).low == pytest.approx(1 - 0.1611252, abs=1e-6)
    assert proportion(0, 0) == Estimate(None, None, None, 0)
    with pytest.raises(ValueError, match="3 successes of 2 rows"):
        proportion(3, 2)


def test_mean_interval_by_hand():
    # 1, 2, 3, 4, 5: mean 3, deviation sqrt(10/4) = 1.581139, t(4) = 2.776445:
    # half = 2.776445 * 1.581139 / sqrt(5) = 1.963243
    estimate = mean([1, 2, 3, 4, 5], what="x")
    assert estimate.value == 3.0
    assert estimate.low == pytest.approx(3 - 1.963243, abs=1e-3)
    assert estimate.high == pytest.approx(3 + 1.963243, abs=1e-3)
    assert estimate.n == 5


@pytest.mark.parametrize(
    ("degrees", "tabulated"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (5, 2.5706),
        (10, 2.2281),
        (30, 2.0423),
        (1000, 1.9623),
    ],
)
def test_student_quantiles(degrees, tabulated):
    assert student_quantile(degrees) == pytest.approx(tabulated, abs=5e-3)


def test_too_few_rows_have_no_interval():
    assert mean([2.5], what="x") == Estimate(2.5, None, None, 1)
    assert mean([], what="x") == Estimate(None, None, None, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_missing_value_is_never_averaged(bad):
    with pytest.raises(NumericalError, match=r"margin: 1 of 3 rows .* the first one is row 2"):
        mean([1.0, bad, 2.0], what="margin")


def test_estimates_are_strict_json():
    text = json.dumps(proportion(0, 0).to_json(), allow_nan=False)
    assert text == '{"value": null, "low": null, "high": null, "n": 0}'


def test_kl_is_exact_on_an_enumerated_distribution():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), every outcome as often as p says, so the mean is
    # exact: 1/2 ln 2 + 1/4 ln 1 - 1/4 ln 2 = 1/4 ln 2.
    p = torch.tensor([0.5, 0.25, 0.25]).log()
    q = torch.tensor([0.25, 0.25, 0.5]).log()
    drawn = torch.tensor([0, 0, 1, 2])
    mask = torch.ones(4, 1, dtype=torch.bool)
    estimate = kl_divergence(Logps(p[drawn, None], mask), Logps(q[drawn, None], mask))
    assert estimate.value == pytest.approx(0.25 * math.log(2), abs=1e-6)
    # Log-ratios ln 2 * (1, 1, 0, -1), deviation ln 2 * sqrt((2*.75^2 + .25^2 + 1.25^2)/3) =
    # .957427 ln 2; half = t(3) 3.182446 * .957427 * .693147 / 2 = 1.055986.
    assert estimate.high == pytest.approx(estimate.value + 1.055986, abs=2e-3)


def test_an_interval_of_a_share_stays_within_0_and_1():
    # Rounding put the upper end of 32 of 32 at 1.0000000000000002.
    for n in range(1, 200):
        assert proportion(n, n).high == 1.0
        assert proportion(0, n).low == 0.0
