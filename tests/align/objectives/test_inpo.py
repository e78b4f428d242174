"""INPO: golden rows, IPO at tau = eta, hard and soft labels, its tabular optimum.

The golden pairs have gaps h = [0.4, 0.8] to the reference and [0.15, 0.15] to `previous`.
"""

import pytest
import torch

from align.objectives import INPO, IPO, objective_from


def test_golden_hard(golden, assert_golden, dtype):
    # tau/eta = 0.4: g = 0.4 [0.4, 0.8] + 0.6 [0.15, 0.15] = [0.25, 0.41]; aim 1/(2 * 0.5) = 1
    # [-0.75, -0.59]^2 = [0.5625, 0.3481]; dL/dlogp_chosen = 2 [-0.75, -0.59] / 2
    assert_golden(
        INPO(eta=0.5, tau=0.2),
        golden(dtype, previous=...),
        0.4553,
        [0.5625, 0.3481],
        [-0.75, -0.59],
        [0.75, 0.59],
    )


def test_golden_soft(golden, assert_golden):
    # p = [0.75, 0.4]: aims (p - 0.5)/0.5 = [0.5, -0.2]; [0.25 - 0.5, 0.41 + 0.2] = [-0.25, 0.61]
    assert_golden(
        INPO(eta=0.5, tau=0.2),
        golden(previous=..., preference=torch.tensor([0.75, 0.4], dtype=torch.float64)),
        0.2173,
        [0.0625, 0.3721],
        [-0.25, 0.61],
        [0.25, -0.61],
    )


def test_golden_at_tau_eta_is_that_of_ipo(golden, assert_golden, dtype):
    # `previous` drops out: (h - 5)^2 with h = [0.4, 0.8]
    assert_golden(
        INPO(eta=0.1, tau=0.1),
        golden(dtype, previous=...),
        19.4,
        [21.16, 17.64],
        [-4.6, -4.2],
        [4.6, 4.2],
    )


@pytest.mark.parametrize("p", [None, [0.9, 0.2]])
def test_at_tau_eta_it_is_ipo(golden, p):
    p = None if p is None else torch.tensor(p, dtype=torch.float64)
    inputs = golden(previous=..., preference=p)
    inpo, ipo = INPO(eta=0.3, tau=0.3)(inputs), IPO(tau=0.3)(inputs)
    torch.testing.assert_close(inpo.loss, ipo.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(inpo.reward.chosen, ipo.reward.chosen, rtol=0, atol=1e-12)


def test_in_round_1_tau_does_not_matter(golden):
    inputs = golden(previous=golden().reference)
    small, large = INPO(eta=0.3, tau=0.01)(inputs), INPO(eta=0.3, tau=0.29)(inputs)
    torch.testing.assert_close(small.loss, large.loss, rtol=0, atol=1e-12)


def test_hard_labels_have_the_gradient_of_soft_ones_in_the_mean(golden, gradients):
    # p times the gradient as recorded plus 1 - p times that of the opposite label
    p = torch.tensor([0.75, 0.4], dtype=torch.float64)
    inpo = INPO(eta=0.5, tau=0.2)
    _, soft = gradients(inpo, golden(previous=..., preference=p))
    _, won = gradients(inpo, golden(previous=...))
    _, lost = gradients(inpo, golden(previous=..., preference=torch.zeros(2)))
    mean = p[:, None] * won.chosen + (1 - p[:, None]) * lost.chosen
    torch.testing.assert_close(soft.chosen, mean, rtol=0, atol=1e-12)


def test_the_reward_is_what_is_compared(golden):
    # 0.4 [0.2, 0.5] + 0.6 [0.1, -0.1]; 0.4 [-0.2, -0.3] + 0.6 [-0.05, -0.25]
    reward = INPO(eta=0.5, tau=0.2)(golden(previous=...)).reward
    assert reward.chosen.tolist() == pytest.approx([0.14, 0.14])
    assert reward.rejected.tolist() == pytest.approx([-0.11, -0.27])


@pytest.mark.parametrize("node", [{"tau": 0}, {"eta": 0.1, "tau": 0.1001}])
def test_tau_outside_its_range_is_refused(node):
    with pytest.raises(ValueError, match=r"`(objective\.)?tau`"):
        objective_from({"name": "inpo", **node})


def test_the_tabular_optimum_is_the_mirror_descent_step(table_optimum):
    # P(i beats j) = 1/2 + s_i - s_j: pi = pi_ref^(tau/eta) pi_prev^(1-tau/eta) exp(s / eta) / Z
    strength = torch.tensor([0.2, -0.1, 0.05, 0.0, -0.15], dtype=torch.float64)
    reference = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    previous = torch.tensor([-0.4, 0.9, 0.1, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    found = table_optimum(
        INPO(eta=0.25, tau=0.1),
        roles={"reference": reference, "previous": previous},
        preference=lambda first, second: 0.5 + strength[first] - strength[second],
    )
    wanted = (0.4 * reference + 0.6 * previous + strength / 0.25).softmax(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
