"""RPO: golden rows of both forms, and what the likelihood term does and does not touch."""

import pytest
import torch

from align.objectives import DPO, RPO
from align.types import Pair


def test_golden_cumulative(golden, assert_golden, dtype):
    # dpo(0.1) = [0.6733471672, 0.6539469673] plus eta beta (-logp) = 0.0005 [2.6, 4.1]
    # dL/dlogp_chosen = [-0.0245000667, -0.024000533] - 0.0005/2; rejected as in DPO
    assert_golden(
        RPO(beta=0.1, eta=0.005, form="cumulative"),
        golden(dtype),
        0.6653220673,
        [0.6746471672, 0.6559969673],
        [-0.0247500667, -0.024250533],
        [0.0245000667, 0.024000533],
    )


def test_golden_average(golden, assert_golden, dtype):
    # dpo(0.5) = [0.5981388694, 0.5130152524] plus eta (-logp/T) = 0.2 [2.6/3, 4.1/4], no beta
    # dL/dlogp_chosen = [-0.1125415007 - 0.2/(2*3), -0.100328085 - 0.2/(2*4)]
    assert_golden(
        RPO(beta=0.5, eta=0.2, form="average"),
        golden(dtype),
        0.7447437276,
        [0.7714722027, 0.7180152524],
        [-0.145874834, -0.125328085],
        [0.1125415007, 0.100328085],
    )


@pytest.mark.parametrize("form", ["cumulative", "average"])
def test_without_the_likelihood_term_it_is_dpo(golden, gradients, form):
    loss, grads = gradients(RPO(beta=0.3, eta=0.0, form=form), golden())
    wanted, wanted_grads = gradients(DPO(beta=0.3), golden())
    assert torch.equal(loss, wanted)
    assert torch.equal(grads.chosen, wanted_grads.chosen)
    assert torch.equal(grads.rejected, wanted_grads.rejected)


def test_a_soft_label_softens_dpo_and_leaves_the_likelihood_on_chosen(golden):
    p = torch.tensor([0.9, 0.2], dtype=torch.float64)
    rpo = RPO(beta=0.1, eta=0.005)(golden(preference=p))
    # eta beta (-logp) = 0.0005 [2.6, 4.1], whatever p is
    wanted = DPO(beta=0.1)(golden(preference=p)).loss + torch.tensor([0.0013, 0.00205])
    torch.testing.assert_close(rpo.loss, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("form", "wanted"),
    # h -> infinity leaves pure likelihood: -eta beta / B = -0.5 * 0.1 / 2 per token, or
    # -eta / (B T) = -0.5 / (2 * 3) and -0.5 / (2 * 4)
    [("cumulative", [-0.025, -0.025]), ("average", [-0.5 / 6, -0.5 / 8])],
)
def test_far_from_the_reference_only_likelihood_is_left(golden, gradients, form, wanted):
    low = golden().policy.rejected
    far = Pair(golden().policy.chosen, type(low)(low.token - 1e4, low.mask))
    _, grads = gradients(RPO(beta=0.1, eta=0.5, form=form), golden(policy=far))
    assert grads.chosen[:, 0].tolist() == pytest.approx(wanted, abs=1e-12)
    assert grads.rejected.abs().max().item() < 1e-12


def test_reward_and_metric(golden):
    out = RPO(beta=0.5, eta=0.2)(golden())
    assert out.reward.chosen.tolist() == pytest.approx([0.1, 0.25])  # 0.5 [0.2, 0.5]
    assert out.reward.rejected.tolist() == pytest.approx([-0.1, -0.15])
    assert set(out.metrics) == {"nll/chosen"}
    assert out.metrics["nll/chosen"].tolist() == pytest.approx([2.6 / 3, 4.1 / 4])  # nats per token


def test_token_weights_are_refused(golden, weights):
    ones = weights([[1] * 3, [1] * 4], [[1] * 4, [1] * 2])
    with pytest.raises(ValueError, match="token_weight"):
        RPO()(golden(token_weight=ones))
