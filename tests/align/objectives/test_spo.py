"""SPO: golden rows with and without tau, REBEL and INPO as other spellings, its tabular optimum.

The golden pairs have gaps h = [0.4, 0.8] to the reference and [0.15, 0.15] to `previous`; the win
rates below differ by [0.7, 0.25].
"""

import pytest
import torch

from align.objectives import INPO, REBEL, SPO, objective_from


@pytest.fixture
def rated(golden, scores):
    def build(dtype=torch.float64, **fields):
        score = scores([0.9, 0.6], [0.2, 0.35], dtype)
        return golden(dtype, **{"previous": ..., "score": score, **fields})

    return build


def test_golden_without_tau(rated, assert_golden, dtype):
    # 0.15 - 2 [0.7, 0.25] = [-1.25, -0.35]; squared [1.5625, 0.1225]
    # dL/dlogp_chosen = 2 [-1.25, -0.35] / 2
    assert_golden(
        SPO(eta=2.0),
        rated(dtype, reference=None),
        0.8425,
        [1.5625, 0.1225],
        [-1.25, -0.35],
        [1.25, 0.35],
    )


def test_golden_with_tau(rated, assert_golden, dtype):
    # eta tau = 0.2: g = 0.2 [0.4, 0.8] + 0.8 [0.15, 0.15] = [0.2, 0.28]; less [1.4, 0.5]
    # [-1.2, -0.22]^2 = [1.44, 0.0484]
    assert_golden(
        SPO(eta=2.0, tau=0.1),
        rated(dtype),
        0.7442,
        [1.44, 0.0484],
        [-1.2, -0.22],
        [1.2, 0.22],
    )


def test_without_tau_it_is_rebel_on_win_rates(rated):
    torch.testing.assert_close(SPO(eta=3.0)(rated()).loss, REBEL(eta=3.0)(rated()).loss)


@pytest.mark.parametrize(("eta", "tau"), [(2.0, 0.1), (0.5, 1.9), (4.0, 0.25)])
def test_it_is_inpo_with_the_gap_of_win_rates_as_label(rated, eta, tau):
    # eta (P_chosen - P_rejected) = (p - 1/2) / (1/eta)
    p = 0.5 + torch.tensor([0.7, 0.25], dtype=torch.float64)
    assert p[0] > 1  # no preference, so INPO is asked at half the gap
    inpo = INPO(eta=1 / eta, tau=tau)
    half = inpo(rated(score=None, preference=0.5 + (p - 0.5) / 2))
    gap = half.reward.chosen - half.reward.rejected
    found = SPO(eta=eta, tau=tau)(rated())
    torch.testing.assert_close(found.loss, (gap - eta * (p - 0.5)) ** 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reward.chosen, half.reward.chosen / eta, rtol=0, atol=1e-12)


def test_a_small_tau_is_near_none(rated):
    found = SPO(eta=2.0, tau=1e-9)(rated()).loss
    torch.testing.assert_close(found, SPO(eta=2.0)(rated()).loss, rtol=0, atol=1e-7)


def test_the_reward_estimates_the_win_rate(rated):
    # d / 2, and (0.2 rho + 0.8 d) / 2
    plain = SPO(eta=2.0)(rated()).reward
    assert plain.chosen.tolist() == pytest.approx([0.05, -0.05])
    assert plain.rejected.tolist() == pytest.approx([-0.025, -0.125])
    pulled = SPO(eta=2.0, tau=0.1)(rated()).reward
    assert pulled.chosen.tolist() == pytest.approx([0.06, 0.01])
    assert pulled.rejected.tolist() == pytest.approx([-0.04, -0.13])


def test_a_reward_is_refused(golden, scores):
    with pytest.raises(ValueError, match=r"Pair 0 .*`chosen_score`.*win rate in \[0, 1\]"):
        SPO()(golden(previous=..., score=scores()))


def test_tau_beyond_the_inverse_of_eta_is_refused():
    assert objective_from({"name": "spo", "eta": 49.0, "tau": 1 / 49}) == SPO(eta=49.0, tau=1 / 49)
    with pytest.raises(ValueError, match=r"`tau` is 0\.0205"):
        objective_from({"name": "spo", "eta": 49.0, "tau": 0.0205})


def test_the_tabular_optimum_is_the_hedge_step(table_optimum, scores):
    # pi = pi_ref^(eta tau) pi_prev^(1 - eta tau) exp(eta P) / Z, for any win rates
    win_rate = torch.tensor([0.9, 0.3, 0.45, 0.75, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    previous = torch.tensor([-0.4, 0.9, 0.1, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    for tau in (0.0, 0.1):
        found = table_optimum(
            SPO(eta=3.0, tau=tau),
            roles={"reference": reference, "previous": previous},
            score=lambda first, second: scores(win_rate[first].tolist(), win_rate[second].tolist()),
        )
        wanted = 3 * tau * reference + (1 - 3 * tau) * previous + 3 * win_rate
        torch.testing.assert_close(found, wanted.softmax(0), rtol=0, atol=1e-6)
