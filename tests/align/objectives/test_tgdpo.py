"""TGDPO: golden rows per token, its limits, the count and the warning of weights that turn a token.

Token log-ratios of the golden pairs:
    guide - reference    chosen    0.3 -0.4  0.2        0.2  0.1 -0.2  0.5
                         rejected -0.3  0.1 -0.3  0.2   0.1 -0.6
    policy - reference   chosen    0.1 -0.2  0.3       -0.2  0.2 -0.1  0.6
                         rejected -0.1  0.2 -0.4  0.1   0.2 -0.5
"""

import logging
import math

import pytest
import torch

from align.objectives import DPO, TGDPO
from align.types import Logps, Pair


def test_golden_alpha_05(golden, assert_golden, dtype):
    # f = 1 +- 0.5 * 0.1 (guide - reference):
    #   chosen 1.015 0.98 1.01, 1.01 1.005 0.99 1.025
    #   rejected 1.015 0.995 1.015 0.99, 0.995 1.03
    # phi_chosen = 0.1 [0.1015 - 0.196 + 0.303, -0.202 + 0.201 - 0.099 + 0.615]
    #   = [0.02085, 0.0515]
    # phi_rejected = 0.1 [-0.1015 + 0.199 - 0.406 + 0.099, 0.199 - 0.515] = [-0.02095, -0.0316]
    # phi = [0.0418, 0.0831], loss log(1 + exp(-phi)); dL/dlp_t = -+sigmoid(-phi) 0.1 f_t / 2
    assert_golden(
        TGDPO(beta=0.1, alpha=0.5),
        golden(dtype, guide=...),
        0.6624628516,
        [0.6724655697, 0.6524601336],
        [
            [-0.0248447397, -0.0239880245, -0.0247223518],
            [-0.0242014658, -0.0240816566, -0.0237222289, -0.0245608935],
        ],
        [
            [0.0248447397, 0.0243551882, 0.0248447397, 0.0242328003],
            [0.0238420381, 0.0246807028],
        ],
    )


def test_golden_alpha_2(golden, assert_golden, dtype):
    # f = 1 +- 0.2 (guide - reference):
    #   chosen 1.06 0.92 1.04, 1.04 1.02 0.96 1.1; rejected 1.06 0.98 1.06 0.96, 0.98 1.12
    # phi = 0.1 [0.106 - 0.184 + 0.312, -0.208 + 0.204 - 0.096 + 0.66]
    #   - 0.1 [-0.106 + 0.196 - 0.424 + 0.096, 0.196 - 0.56] = [0.0472, 0.0924]
    assert_golden(
        TGDPO(beta=0.1, alpha=2.0),
        golden(dtype, guide=...),
        0.6589198279,
        [0.6698256347, 0.6480140211],
        [
            [-0.0258747161, -0.0224573008, -0.0253865139],
            [-0.0247996539, -0.0243227375, -0.0228919882, -0.0262304032],
        ],
        [
            [0.0258747161, 0.0239219073, 0.0258747161, 0.0234337051],
            [0.0233689046, 0.0267073196],
        ],
    )


def test_the_reward_is_the_weighted_log_ratio(golden):
    reward = TGDPO(beta=0.1, alpha=0.5)(golden(guide=...)).reward
    assert reward.chosen.tolist() == pytest.approx([0.02085, 0.0515])
    assert reward.rejected.tolist() == pytest.approx([-0.02095, -0.0316])


def test_alpha_0_is_dpo(golden, gradients):
    loss, grads = gradients(TGDPO(beta=0.3, alpha=0.0), golden(guide=...))
    wanted, wanted_grads = gradients(DPO(beta=0.3), golden())
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads.chosen, wanted_grads.chosen, rtol=0, atol=1e-12)
    torch.testing.assert_close(grads.rejected, wanted_grads.rejected, rtol=0, atol=1e-12)


def test_the_reference_as_guide_is_dpo(golden):
    found = TGDPO(beta=0.3, alpha=2.0)(golden(guide=golden().reference))
    torch.testing.assert_close(found.loss, DPO(beta=0.3)(golden()).loss, rtol=0, atol=1e-12)


def test_at_the_reference_the_loss_is_log_2_for_any_guide(golden):
    loss = TGDPO(alpha=2.0)(golden(guide=..., reference=golden().policy)).loss
    assert loss.tolist() == pytest.approx([math.log(2.0)] * 2)


def test_weights_that_are_not_positive_are_counted_and_told_once(golden, caplog):
    # alpha beta = 4: chosen 2.2 -0.6 1.8, 1.8 1.4 0.2 3.0 and rejected 2.2 0.6 2.2 0.2, 0.6 3.4:
    # one, in pair 0's chosen
    tgdpo, inputs = TGDPO(beta=0.1, alpha=40.0), golden(guide=...)
    with caplog.at_level(logging.WARNING, logger="align.objectives.tgdpo"):
        metrics = tgdpo(inputs).metrics
        tgdpo(inputs)
    assert metrics["nonpositive_weights/chosen"].tolist() == [1, 0]
    assert metrics["nonpositive_weights/rejected"].tolist() == [0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "tgdpo: some token weights are not positive, so these tokens are pulled the wrong way: the "
        "guide is far from the reference for alpha 40 and beta 0.1. Lower alpha, and watch the "
        "metrics nonpositive_weights/chosen and nonpositive_weights/rejected."
    ]


def test_a_weight_of_zero_is_not_positive_and_the_sides_have_opposite_signs(golden):
    # guide - reference = -1 everywhere, exactly; alpha beta = 1: weights 0 on chosen, 2 on rejected
    policy = golden().policy
    reference, guide = (
        Pair(
            *[Logps(torch.full_like(s.token, v), s.mask) for s in (policy.chosen, policy.rejected)]
        )
        for v in (-1.0, -2.0)
    )
    metrics = TGDPO(beta=0.5, alpha=2.0)(golden(guide=guide, reference=reference)).metrics
    assert metrics["nonpositive_weights/chosen"].tolist() == [3, 4]
    assert metrics["nonpositive_weights/rejected"].tolist() == [0, 0]


def test_usual_weights_are_not_counted_and_not_warned_of(golden, caplog):
    with caplog.at_level(logging.WARNING, logger="align.objectives.tgdpo"):
        metrics = TGDPO(beta=0.1, alpha=2.0)(golden(guide=...)).metrics
    assert not caplog.records
    assert not any(count.any() for count in metrics.values())
