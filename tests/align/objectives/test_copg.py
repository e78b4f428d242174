"""CoPG: golden rows, its squared form, IPO as a special case, order and shift, its optimum."""

import pytest
import torch

from align.objectives import IPO, CoPG
from align.types import Pair


def test_golden(golden, scores, assert_golden, dtype):
    # h = [0.4, 0.8], dR = [2, -0.5]: 0.05 h^2 - dR h = [0.008 - 0.8, 0.032 + 0.4]
    # dL/dlogp_chosen = -(dR - 0.1 h) / 2 = -[1.96, -0.58] / 2
    assert_golden(
        CoPG(beta=0.1),
        golden(dtype, score=scores(dtype=dtype)),
        -0.18,
        [-0.792, 0.432],
        [-0.98, 0.29],
        [0.98, -0.29],
    )


def test_golden_squared_form(golden, scores, gradients):
    # (dR - beta h)^2 = [1.96^2, 0.58^2] = [3.8416, 0.3364] = 2 beta L + dR^2, dR^2 = [4, 0.25]
    inputs = golden(score=scores())
    loss, grads = gradients(CoPG(beta=0.1), inputs)
    squared = 2 * 0.1 * loss + torch.tensor([4.0, 0.25])
    assert squared.tolist() == pytest.approx([3.8416, 0.3364], abs=1e-12)
    assert squared.mean().item() == pytest.approx(2.089, abs=1e-12)
    assert (0.2 * grads.chosen[:, 0]).tolist() == pytest.approx([-0.196, 0.058], abs=1e-12)


@pytest.mark.parametrize("gap", [1.0, 0.5, -2.0])
def test_it_is_ipo_up_to_scale_and_constant(golden, scores, gap):
    # L = (beta/2) IPO_sum(tau = beta/(2 dR)) - dR^2/(2 beta); IPO's aim 1/(2 tau) is dR/beta
    beta = 0.1
    copg = CoPG(beta=beta)(golden(score=scores([gap, gap], [0, 0]))).loss
    if gap > 0:
        ipo = IPO(tau=beta / (2 * gap))(golden()).loss
    else:  # the other side is the better one
        inputs = golden()
        swapped = golden(
            policy=Pair(inputs.policy.rejected, inputs.policy.chosen),
            reference=Pair(inputs.reference.rejected, inputs.reference.chosen),
        )
        ipo = IPO(tau=beta / (-2 * gap))(swapped).loss
    torch.testing.assert_close(copg, beta / 2 * ipo - gap**2 / (2 * beta), rtol=0, atol=1e-12)


def test_the_order_of_the_sides_does_not_matter(golden, scores):
    inputs = golden(score=scores())
    swapped = golden(
        policy=Pair(inputs.policy.rejected, inputs.policy.chosen),
        reference=Pair(inputs.reference.rejected, inputs.reference.chosen),
        score=Pair(inputs.score.rejected, inputs.score.chosen),
    )
    torch.testing.assert_close(CoPG()(swapped).loss, CoPG()(inputs).loss, rtol=0, atol=1e-12)


def test_a_constant_of_the_prompt_changes_nothing(golden, scores):
    at = CoPG()(golden(score=scores([1.5, 0.2], [-0.5, 0.7])))
    shifted = CoPG()(golden(score=scores([4.5, -0.8], [2.5, -0.3])))  # +3, -1
    torch.testing.assert_close(shifted.loss, at.loss, rtol=0, atol=1e-12)


def test_the_gradient_is_reinforce_with_the_other_side_as_baseline(golden, scores, gradients):
    # Regularised rewards R - beta rho, frozen, as weights of log pi: the paper's point
    inputs, beta = golden(score=scores()), 0.3
    _, found = gradients(CoPG(beta=beta), inputs)
    rho = [
        getattr(inputs.policy, side).total() - getattr(inputs.reference, side).total()
        for side in ("chosen", "rejected")
    ]
    regularised = [inputs.score.chosen - beta * rho[0], inputs.score.rejected - beta * rho[1]]
    advantage = regularised[0] - regularised[1]
    torch.testing.assert_close(found.chosen[:, 0], -advantage / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.rejected[:, 0], advantage / 2, rtol=0, atol=1e-12)


def test_the_reward_is_beta_times_the_log_ratio(golden, scores):
    reward = CoPG(beta=0.5)(golden(score=scores())).reward
    assert reward.chosen.tolist() == pytest.approx([0.1, 0.25])
    assert reward.rejected.tolist() == pytest.approx([-0.1, -0.15])


def test_the_tabular_optimum_of_the_papers_bandit(table_optimum, scores):
    # R = (2.5, 2, 1), beta = 0.5, uniform reference: softmax(R / beta)
    reward = torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
    found = table_optimum(
        CoPG(beta=0.5),
        roles={"reference": torch.zeros(3, dtype=torch.float64).log_softmax(0)},
        score=lambda first, second: scores(reward[first].tolist(), reward[second].tolist()),
    )
    torch.testing.assert_close(found, (reward / 0.5).softmax(0), rtol=0, atol=1e-6)
