"""CISPO: golden rows, REINFORCE on-policy, and gradient where a clip of the update has none."""

import math

import pytest
import torch

from align.objectives import CISPO, DAPO


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2]; ratios cut at 1: [1, e^-0.05, 1], [e^-0.05, 1, e^-0.15, 1],
    # [e^-0.1, 1, e^-0.05, e^-0.05]; L = -A 3 / 11 sum u log pi, with sums
    # -0.9 - 1.3 * 0.9512294245 - 0.4 = -2.5365982518, -4.2489620601, -3.8413960308
    # dL/dlogp = -A u / 11, since the ratio has no gradient
    u = [math.exp(x) for x in (-0.05, -0.15, -0.1)]
    assert_golden(
        CISPO(scale="none", largest_ratio=1.0),
        tensors(golden(0, 1, 2), dtype),
        [0.7609794756, -1.0429270511, -0.2095306926],
        [
            [-0.1, -0.1 * u[0], -0.1],
            [0.9 / 11 * u[0], 0.9 / 11, 0.9 / 11 * u[1], 0.9 / 11],
            [0.2 / 11 * u[2], 0.2 / 11, 0.2 / 11 * u[0], 0.2 / 11 * u[0]],
        ],
    )


def test_on_policy_its_gradient_is_reinforce_with_the_advantage(random_rows, tensors, gradients):
    rows = [{**row, "previous": row["policy"]} for row in random_rows(0)]
    inputs = tensors(rows)
    _, found = gradients(CISPO(), inputs)
    advantage = CISPO()(inputs).metrics["advantage"]
    tokens = sum(len(row["policy"]) for row in rows)
    for i, row in enumerate(rows):
        wanted = [-advantage[i].item() / tokens] * len(row["policy"])
        assert found[i, : len(row["policy"])].tolist() == pytest.approx(wanted, abs=1e-15)
    _, dapo = gradients(DAPO(), inputs)
    torch.testing.assert_close(found, dapo, rtol=0, atol=1e-15)


def test_no_token_is_without_gradient_and_none_weighs_more_than_the_cut(of_rho, tensors, gradients):
    rho = [2.0, -0.5, 2.0, -0.5]
    inputs = tensors(of_rho(rho, score=[1.0, 1.0, -1.0, -1.0]))
    _, found = gradients(CISPO(scale="none"), inputs)
    wanted = [-5.0, -math.exp(-0.5), 5.0, math.exp(-0.5)]
    assert (4 * found[:, 0]).tolist() == pytest.approx(wanted)
    assert CISPO()(inputs).metrics["clipped"].tolist() == [1.0, 0.0, 1.0, 0.0]
    _, dapo = gradients(DAPO(scale="none"), inputs)
    assert (dapo[:, 0] == 0).tolist() == [True, False, False, True]


def test_kl_is_a_term_of_its_own(random_rows, tensors, gradients):
    inputs = tensors(random_rows(1))
    (_, free), (_, held) = gradients(CISPO(), inputs), gradients(CISPO(kl_beta=0.5), inputs)
    x = (inputs.policy.token - inputs.reference.token).masked_fill(~inputs.policy.mask, 0.0)
    wanted = 0.5 * (1 - (-x).exp()) / inputs.policy.lengths().sum()
    torch.testing.assert_close(held - free, wanted, rtol=0, atol=1e-14)
