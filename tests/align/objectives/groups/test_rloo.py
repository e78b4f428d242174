"""RLOO: golden rows, an unbiased gradient on a bandit, GRPO's kin, one completion alone."""

import math
from itertools import product

import pytest
import torch

from align.objectives import RLOO, GroupRelative
from align.types import GroupInputs, Logps


def test_golden(golden, tensors, assert_golden, dtype):
    # log previous - log reference: 0.1, -0.15, 0.6; G = score - 0.1 of it = 1.49, -0.485, 0.14
    # A = 1.49 + 0.345 / 2 = 1.6625, -0.485 - 0.815 = -1.3, 0.14 - 0.5025 = -0.3625
    # w = e^0.1, e^-0.05, e^-0.1 within 0.8 .. 1.2: L = -A w, dL/dlogp = -A w / 3
    assert_golden(
        RLOO(kl_beta=0.1),
        tensors(golden(0, 1, 2), dtype),
        [-1.8373466513, 1.2365982519, 0.3280035640],
        [-0.6124488838, 0.4121994173, 0.1093345213],
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_on_policy_its_mean_gradient_is_that_of_the_expected_return(beta):
    """Over all draws of two from three answers, with KL in what is expected."""
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, -0.2], dtype=torch.float64).log_softmax(0)
    score = torch.tensor([1.0, -0.4, 0.3], dtype=torch.float64)
    logps = logits.log_softmax(0)
    p = logps.detach().exp()
    mask = torch.ones(2, 1, dtype=torch.bool)
    total = torch.zeros((), dtype=torch.float64)
    for pair in product(range(3), repeat=2):
        drawn = torch.tensor(pair)
        inputs = GroupInputs(
            policy=Logps(logps[drawn][:, None], mask),
            previous=Logps(logps.detach()[drawn][:, None], mask),
            reference=Logps(reference[drawn][:, None], mask),
            group=torch.zeros(2, dtype=torch.int64),
            score=score[drawn],
        )
        total = total + p[drawn].prod() * RLOO(kl_beta=beta)(inputs).loss.mean()
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    expected = (logps.exp() * (score - beta * (logps - reference))).sum()
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, -wanted, rtol=0, atol=1e-14)
    assert found.abs().max() > 0.01


def test_completions_of_one_token_are_group_relative_left_out(of_rho, tensors, gradients):
    rho = [0.5, -0.3, 0.1, -0.05, 0.6, -0.4]
    inputs = tensors(of_rho(rho, score=[1.0, 0.2, -0.5, 0.0, -1.0, 0.4], group=[0, 0, 0, 1, 1, 1]))
    ours = gradients(RLOO(kl_beta=0.0, clip_high=0.3), inputs)
    grpo = GroupRelative(baseline="leave_one_out", scale="none", clip=0.2, clip_high=0.3)
    for found, wanted in zip(ours, gradients(grpo, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_the_ratio_is_that_of_the_whole_completion(golden, tensors, gradients):
    # log w = 0.1 of chosen 0: beyond a clip of 0.1 (e^0.1 = 1.105) and within one of 0.11
    inputs = tensors(golden(0, 1))
    for high, stopped in ((0.1, True), (0.11, False)):
        objective = RLOO(kl_beta=0.0, clip_high=high)
        loss, found = gradients(objective, inputs)
        assert (not found[0].any()) == stopped
        assert objective(inputs).metrics["clipped"].tolist() == [float(stopped), 0.0]
        assert loss[0].item() == pytest.approx(-2.0 * min(math.exp(0.1), 1 + high))


def test_one_completion_alone_has_no_baseline(golden, tensors, gradients):
    loss, found = gradients(RLOO(), tensors(golden(0)))
    assert loss.tolist() == [0.0]
    assert not found.any()
    assert RLOO()(tensors(golden(0))).metrics["compares"].tolist() == [0.0]


def test_needs_hang_on_the_kl_term():
    assert RLOO().needs == {"previous", "score", "reference"}
    assert RLOO(kl_beta=0.0).needs == {"previous", "score"}
