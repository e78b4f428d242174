"""IPO: golden rows of both conventions, soft targets, its tabular optimum."""

import pytest
import torch

from align.objectives import IPO


def test_golden_sums(golden, assert_golden, dtype):
    # h = [0.4, 0.8], target 1/(2 * 0.1) = 5: (-4.6)^2 = 21.16, (-4.2)^2 = 17.64
    # dL/dlogp_chosen = 2 (h - 5) / 2 = [-4.6, -4.2]
    assert_golden(
        IPO(tau=0.1, length_normalised=False),
        golden(dtype),
        19.4,
        [21.16, 17.64],
        [-4.6, -4.2],
        [4.6, 4.2],
    )


def test_golden_averages(golden, assert_golden, dtype):
    # rho/T: chosen 0.2/3, 0.5/4; rejected -0.2/4, -0.3/2
    # gap 0.0666666667 + 0.05 = 0.1166666667 and 0.125 + 0.15 = 0.275
    # (0.1166666667 - 5)^2 = 23.8469444444, (0.275 - 5)^2 = 22.325625
    # dL/dlogp = 2 (gap - 5) / 2 / T = -4.8833333333/3, -4.725/4 and 4.8833333333/4, 4.725/2
    assert_golden(
        IPO(tau=0.1, length_normalised=True),
        golden(dtype),
        23.0862847222,
        [23.8469444444, 22.325625],
        [-1.6277777778, -1.18125],
        [1.2208333333, 2.3625],
    )


def test_golden_soft_labels(golden, assert_golden):
    # p = [0.75, 0.4]: targets (p - 0.5)/0.1 = [2.5, -1]; (0.4 - 2.5)^2 = 4.41, (0.8 + 1)^2 = 3.24
    # dL/dlogp_chosen = 2 (h - target) / 2 = [-2.1, 1.8]
    assert_golden(
        IPO(tau=0.1),
        golden(preference=torch.tensor([0.75, 0.4], dtype=torch.float64)),
        3.825,
        [4.41, 3.24],
        [-2.1, 1.8],
        [2.1, -1.8],
    )


def test_the_reward_is_what_is_compared(golden):
    summed = IPO(length_normalised=False)(golden()).reward
    assert summed.chosen.tolist() == pytest.approx([0.2, 0.5])
    assert summed.rejected.tolist() == pytest.approx([-0.2, -0.3])
    mean = IPO(length_normalised=True)(golden()).reward
    assert mean.chosen.tolist() == pytest.approx([0.2 / 3, 0.5 / 4])
    assert mean.rejected.tolist() == pytest.approx([-0.2 / 4, -0.3 / 2])


def test_the_loss_is_least_where_the_gap_is_half_over_tau(golden, gradients):
    # h = 0.4 in pair 0, so tau = 1/(2 * 0.4) = 1.25 is its minimum
    loss, grads = gradients(IPO(tau=1.25), golden())
    assert loss[0].item() == pytest.approx(0.0, abs=1e-15)
    assert grads.chosen[0].abs().max().item() < 1e-12
    assert loss[1].item() == pytest.approx(0.16)  # (0.8 - 0.4)^2


def test_the_tabular_optimum_has_the_asked_gaps(table_optimum):
    # Labels p = 1/2 + (s_i - s_j) are consistent: log(pi/pi_ref) = s/tau + const solves all pairs
    strength = torch.tensor([0.2, -0.1, 0.05, 0.0, -0.15], dtype=torch.float64)
    reference = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    found = table_optimum(
        IPO(tau=0.25),
        roles={"reference": reference},
        preference=lambda first, second: 0.5 + strength[first] - strength[second],
    )
    torch.testing.assert_close(found, (reference + strength / 0.25).softmax(0), rtol=0, atol=1e-6)
