"""rDPO: golden rows, unbiasedness over flips, its distance to DPO."""

import pytest
import torch

from align.objectives import DPO, RDPO, objective_from
from align.types import Pair


def test_golden_eps_01(golden, assert_golden, dtype):
    # m = 0.1 h = [0.04, 0.08]; rdpo = dpo - eps/(1-2 eps) m = dpo - 0.125 m
    #   = [0.6733471672 - 0.005, 0.6539469673 - 0.01]
    # dL/dlogp_chosen = -0.05 (sigmoid(-m) + 0.125) = -0.05 [0.6150013332, 0.6050106605]
    assert_golden(
        RDPO(beta=0.1, flip_probability=0.1),
        golden(dtype),
        0.6561470673,
        [0.6683471672, 0.6439469673],
        [-0.0307500667, -0.030250533],
        [0.0307500667, 0.030250533],
    )


def test_golden_eps_03(golden, assert_golden, dtype):
    # dpo - 0.3/0.4 m = [0.6733471672 - 0.03, 0.6539469673 - 0.06]
    # dL/dlogp_chosen = -0.05 (sigmoid(-m) + 0.75) = -0.05 [1.2400013332, 1.2300106605]
    assert_golden(
        RDPO(beta=0.1, flip_probability=0.3),
        golden(dtype),
        0.6186470673,
        [0.6433471672, 0.5939469673],
        [-0.0620000667, -0.061500533],
        [0.0620000667, 0.061500533],
    )


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.45])
def test_the_mean_over_flipped_labels_is_dpo_on_clean_ones(golden, eps):
    inputs = golden()
    flipped = golden(
        policy=Pair(inputs.policy.rejected, inputs.policy.chosen),
        reference=Pair(inputs.reference.rejected, inputs.reference.chosen),
    )
    rdpo = RDPO(beta=0.7, flip_probability=eps)
    mean = (1 - eps) * rdpo(inputs).loss + eps * rdpo(flipped).loss
    torch.testing.assert_close(mean, DPO(beta=0.7)(inputs).loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.45])
def test_the_gap_to_dpo_is_linear_in_the_margin(golden, eps):
    # rdpo = dpo - eps/(1-2 eps) m, with m = 0.5 h = [0.2, 0.4]
    slope = eps / (1 - 2 * eps)
    gap = RDPO(beta=0.5, flip_probability=eps)(golden()).loss - DPO(beta=0.5)(golden()).loss
    assert gap.tolist() == pytest.approx([-slope * 0.2, -slope * 0.4], abs=1e-12)


def test_the_reward_is_that_of_dpo(golden):
    reward = RDPO(beta=0.5, flip_probability=0.2)(golden()).reward
    assert reward.chosen.tolist() == pytest.approx([0.1, 0.25])  # 0.5 [0.2, 0.5]
    assert reward.rejected.tolist() == pytest.approx([-0.1, -0.15])


def test_the_pull_never_dies_and_the_loss_falls_below_zero(golden, gradients):
    # h = 10,000 nats: what is left is -eps/(1-2 eps) m = -0.125 * 1000
    inputs = golden()
    far = golden(policy=Pair(_plus(inputs.policy.chosen, 1e4), inputs.policy.rejected))
    loss, grads = gradients(RDPO(beta=0.1, flip_probability=0.1), far)
    assert loss.tolist() == pytest.approx([-125.005, -125.01], abs=1e-9)
    # -beta eps/(1-2 eps) / B = -0.1 * 0.125 / 2
    assert grads.chosen[:, 0].tolist() == pytest.approx([-0.00625] * 2, abs=1e-12)


def _plus(side, nats):
    token = side.token.clone()
    token[:, 0] += nats
    return type(side)(token, side.mask)


@pytest.mark.parametrize("eps", [-0.01, 0.5, 0.7, float("nan")])
def test_a_flip_probability_outside_its_range_is_refused(eps):
    with pytest.raises(ValueError, match=r"objective\.flip_probability"):
        objective_from({"name": "rdpo", "flip_probability": eps})
