"""REBEL: golden rows, the paper's scale, CoPG and IPO as special cases, its tabular optimum.

The golden pairs have d_chosen = [0.1, -0.1], d_rejected = [-0.05, -0.25] against `previous`, so
their gap is [0.15, 0.15]; the scores' is dR = [2, -0.5].
"""

import pytest
import torch

from align.objectives import IPO, REBEL, CoPG


def test_golden_eta_1(golden, scores, assert_golden, dtype):
    # [0.15 - 2, 0.15 + 0.5] = [-1.85, 0.65]; squared [3.4225, 0.4225]
    # dL/dlogp_chosen = 2 [-1.85, 0.65] / 2
    assert_golden(
        REBEL(eta=1.0),
        golden(dtype, previous=..., score=scores(dtype=dtype)),
        1.9225,
        [3.4225, 0.4225],
        [-1.85, 0.65],
        [1.85, -0.65],
    )


def test_golden_eta_1000(golden, scores, assert_golden):
    # [0.15 - 2000, 0.15 + 500] = [-1999.85, 500.15]; squared [3999400.0225, 250150.0225]
    inputs = golden(previous=..., score=scores())
    assert_golden(
        REBEL(eta=1000.0),
        inputs,
        2124775.0225,
        [3999400.0225, 250150.0225],
        [-1999.85, 500.15],
        [1999.85, -500.15],
    )
    # the paper's scale, [(gap/eta) - dR]^2, is this / eta^2
    paper = REBEL(eta=1000.0)(inputs).loss / 1000.0**2
    assert paper.tolist() == pytest.approx([3.9994000225, 0.2501500225], abs=1e-9)


def test_the_reward_estimates_the_score(golden, scores):
    reward = REBEL(eta=2.0)(golden(previous=..., score=scores())).reward
    assert reward.chosen.tolist() == pytest.approx([0.05, -0.05])  # d / 2
    assert reward.rejected.tolist() == pytest.approx([-0.025, -0.125])


def test_at_previous_the_gradient_is_the_gap_of_rewards(golden, scores, gradients):
    inputs = golden(previous=golden().policy, score=scores())
    _, grads = gradients(REBEL(eta=0.5), inputs)
    # -2 eta dR / B = -0.5 [2, -0.5]
    assert grads.chosen[:, 0].tolist() == pytest.approx([-1.0, 0.25])
    assert grads.rejected[:, 0].tolist() == pytest.approx([1.0, -0.25])


def test_a_constant_of_the_prompt_changes_nothing(golden, scores):
    at = REBEL()(golden(previous=..., score=scores([1.5, 0.2], [-0.5, 0.7])))
    shifted = REBEL()(golden(previous=..., score=scores([4.5, -0.8], [2.5, -0.3])))  # +3, -1
    torch.testing.assert_close(shifted.loss, at.loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0, 20.0])
def test_its_gradient_is_2_eta_times_copg_against_previous(golden, scores, gradients, eta):
    inputs = golden(previous=golden().reference, score=scores())
    _, rebel = gradients(REBEL(eta=eta), inputs)
    _, copg = gradients(CoPG(beta=1 / eta), inputs)
    torch.testing.assert_close(rebel.chosen, 2 * eta * copg.chosen, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rebel.rejected, 2 * eta * copg.rejected, rtol=1e-12, atol=1e-12)


def test_scores_1_and_0_make_ipo_against_previous(golden, scores):
    # eta dR = 1/(2 tau)
    inputs = golden(previous=golden().reference, score=scores([1, 1], [0, 0]))
    torch.testing.assert_close(REBEL(eta=5.0)(inputs).loss, IPO(tau=0.1)(inputs).loss)


def test_the_tabular_optimum_is_the_tilted_previous(table_optimum, scores):
    reward = torch.tensor([9.0, -4.0, 1.0, 5.0, -11.0], dtype=torch.float64)
    previous = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    found = table_optimum(
        REBEL(eta=0.2),
        roles={"previous": previous},
        score=lambda first, second: scores(reward[first].tolist(), reward[second].tolist()),
    )
    torch.testing.assert_close(found, (previous + 0.2 * reward).softmax(0), rtol=0, atol=1e-6)
