"""cDPO: golden rows, its distance to DPO, its finite optimum."""

import math

import pytest
import torch

from align.objectives import CDPO, DPO, objective_from
from align.types import Logps, Pair, PairInputs


def test_golden_eps_01(golden, assert_golden, dtype):
    # m = 0.1 h = [0.04, 0.08]; cdpo = dpo + eps m
    #   = [0.6733471672 + 0.004, 0.6539469673 + 0.008]
    # dL/dlogp_chosen = 0.1 (sigmoid(m) - 0.9) / 2 = 0.05 ([0.5099986668, 0.5199893395] - 0.9)
    assert_golden(
        CDPO(beta=0.1, label_smoothing=0.1),
        golden(dtype),
        0.6696470673,
        [0.6773471672, 0.6619469673],
        [-0.0195000667, -0.019000533],
        [0.0195000667, 0.019000533],
    )


def test_golden_eps_03(golden, assert_golden, dtype):
    # dpo + 0.3 m = [0.6733471672 + 0.012, 0.6539469673 + 0.024]
    # dL/dlogp_chosen = 0.05 ([0.5099986668, 0.5199893395] - 0.7)
    assert_golden(
        CDPO(beta=0.1, label_smoothing=0.3),
        golden(dtype),
        0.6816470673,
        [0.6853471672, 0.6779469673],
        [-0.0095000667, -0.009000533],
        [0.0095000667, 0.009000533],
    )


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.49])
def test_the_gap_to_dpo_is_eps_times_the_margin(golden, eps):
    # softplus(m) - softplus(-m) = m, with m = 0.5 h = [0.2, 0.4]
    gap = CDPO(beta=0.5, label_smoothing=eps)(golden()).loss - DPO(beta=0.5)(golden()).loss
    assert gap.tolist() == pytest.approx([eps * 0.2, eps * 0.4], abs=1e-12)


def test_the_gradient_vanishes_at_the_log_odds_of_the_noise():
    # beta h = log((1 - eps) / eps) = log 9, here with h = log 9 / 0.1 all on chosen
    mask = torch.ones(1, 1, dtype=torch.bool)
    zero = Logps(torch.zeros(1, 1, dtype=torch.float64), mask)
    token = torch.full((1, 1), math.log(9.0) / 0.1, dtype=torch.float64, requires_grad=True)
    inputs = PairInputs(policy=Pair(Logps(token, mask), zero), reference=Pair(zero, zero))
    CDPO(beta=0.1, label_smoothing=0.1)(inputs).loss.sum().backward()
    assert token.grad is not None
    assert abs(token.grad.item()) < 1e-15


def test_the_reward_is_that_of_dpo(golden):
    reward = CDPO(beta=0.5, label_smoothing=0.2)(golden()).reward
    assert reward.chosen.tolist() == pytest.approx([0.1, 0.25])
    assert reward.rejected.tolist() == pytest.approx([-0.1, -0.15])


@pytest.mark.parametrize("eps", [-0.01, 0.5, 0.7, float("nan")])
def test_smoothing_outside_its_range_is_refused(eps):
    with pytest.raises(ValueError, match=r"objective\.label_smoothing"):
        objective_from({"name": "cdpo", "label_smoothing": eps})
