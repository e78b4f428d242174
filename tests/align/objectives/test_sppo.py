"""SPPO: golden rows, the scale against TRL, win rates only, its tabular optimum.

In the golden rows the fixture's reference stands for `previous`, so d = rho.
"""

import pytest
import torch

from align.objectives import SPPO
from align.types import Pair


def rates(chosen, rejected, dtype=torch.float64):
    return Pair(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))


def test_golden_soft(golden, assert_golden, dtype):
    # targets (P - 0.5)/0.001 = chosen [400, 100], rejected [-300, -150]
    # 0.5 ((0.2 - 400)^2 + (-0.2 + 300)^2) = 0.5 (159840.04 + 89880.04) = 124860.04
    # 0.5 ((0.5 - 100)^2 + (-0.3 + 150)^2) = 0.5 (9900.25 + 22410.09) = 16155.17
    # dL/dlogp = (d - target) / 2
    score = rates([0.9, 0.6], [0.2, 0.35], dtype)
    assert_golden(
        SPPO(beta=0.001),
        golden(dtype, previous=golden(dtype).reference, score=score),
        70507.605,
        [124860.04, 16155.17],
        [-199.9, -49.75],
        [149.9, 74.85],
    )


def test_golden_hard_is_half_of_trl(golden, assert_golden, dtype):
    # targets +-0.5/0.1 = +-5: 0.5 ((0.2 - 5)^2 + (-0.2 + 5)^2) = 0.5 (23.04 + 23.04) = 23.04
    # 0.5 ((0.5 - 5)^2 + (-0.3 + 5)^2) = 0.5 (20.25 + 22.09) = 21.17; dL/dlogp = (d - target) / 2
    inputs = golden(dtype, previous=golden(dtype).reference, score=rates([1, 1], [0, 0], dtype))
    assert_golden(SPPO(beta=0.1), inputs, 22.105, [23.04, 21.17], [-2.4, -2.25], [2.4, 2.35])
    # TRL's `sppo_hard`: (d_chosen - 0.5/beta)^2 + (d_rejected + 0.5/beta)^2
    trl = torch.tensor([46.08, 42.34], dtype=dtype)
    torch.testing.assert_close(2 * SPPO(beta=0.1)(inputs).loss, trl)


def test_it_compares_with_previous_and_not_with_the_reference(golden):
    # d_chosen = [0.1, -0.1], d_rejected = [-0.05, -0.25]; even scores aim at 0
    inputs = golden(previous=..., score=rates([0.5, 0.5], [0.5, 0.5]))
    # 0.5 (0.01 + 0.0025), 0.5 (0.01 + 0.0625)
    out = SPPO(beta=0.1)(inputs)
    assert out.loss.tolist() == pytest.approx([0.00625, 0.03625])
    assert out.reward.chosen.tolist() == pytest.approx([0.01, -0.01])  # beta d
    assert out.reward.rejected.tolist() == pytest.approx([-0.005, -0.025])


def test_the_sides_do_not_touch_each_other(golden, gradients):
    at = golden(previous=..., score=rates([0.9, 0.9], [0.3, 0.3]))
    moved = golden(previous=..., score=rates([0.9, 0.9], [0.8, 0.1]))
    chosen = gradients(SPPO(), at)[1].chosen
    assert torch.equal(chosen, gradients(SPPO(), moved)[1].chosen)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("value", [1.5, -0.5, 1.0000001, float("nan"), float("inf")])
def test_a_score_that_is_no_win_rate_is_refused(golden, side, value):
    both = {"chosen": [0.5, 0.5], "rejected": [0.5, 0.5]}
    both[side][1] = value
    with pytest.raises(ValueError, match=rf"Pair 1 .*`{side}_score`.*win rate in \[0, 1\]"):
        SPPO()(golden(previous=..., score=rates(**both)))


def test_the_ends_of_the_range_are_win_rates(golden):
    assert SPPO()(golden(previous=..., score=rates([1, 0], [0, 1]))).loss.isfinite().all()


def test_the_tabular_optimum_is_the_tilted_previous(table_optimum):
    # log(pi/pi_prev) = (P - 1/2)/beta on every side can be had if its exponentials, weighed by
    # pi_prev, sum to 1: with tilts x, -x, y that is 0.25 e^x + 0.25 e^-x + 0.5 e^y = 1, so
    # e^y = 2 - cosh x
    previous = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    x = torch.tensor(0.8, dtype=torch.float64)
    log_tilt = torch.stack([x, -x, torch.log(2 - torch.cosh(x))])
    win_rate = 0.5 + 0.25 * log_tilt  # beta = 0.25
    found = table_optimum(
        SPPO(beta=0.25),
        roles={"previous": previous},
        score=lambda first, second: Pair(win_rate[first], win_rate[second]),
    )
    torch.testing.assert_close(found, (previous + log_tilt).exp(), rtol=0, atol=1e-6)
