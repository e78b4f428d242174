"""VESPO: golden rows, REINFORCE on-policy, where the weight is largest, and what bounds it."""

import math

import pytest
import torch

from align.objectives import CISPO, VESPO


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2]; log w = [0.1, -0.05, -0.1]; k, lambda = 2, 3 where A >= 0, else 3, 2:
    # phi = exp(0.2 + 3 (1 - e^0.1)) = 0.8909092093, exp(-0.15 + 2 (1 - e^-0.05)) = 0.9488933681,
    # exp(-0.3 + 2 (1 - e^-0.1)) = 0.8961254756; log pi = -2.6, -4.6, -4.1
    # L = -phi A log pi 3 / 11, dL/dlogp = -phi A / 11, since the weight has no gradient
    assert_golden(
        VESPO(scale="none"),
        tensors(golden(0, 1, 2), dtype),
        [0.6949091833, -1.0713868757, -0.2004062427],
        [-0.0890909209, 0.0776367301, 0.0162931905],
    )


def test_on_policy_its_gradient_is_reinforce_with_the_advantage(random_rows, tensors, gradients):
    inputs = tensors([{**row, "previous": row["policy"]} for row in random_rows(0)])
    _, found = gradients(VESPO(k_pos=0.7, lambda_neg=5.0), inputs)
    _, reinforce = gradients(CISPO(), inputs)
    torch.testing.assert_close(found, reinforce, rtol=0, atol=1e-15)
    assert VESPO()(inputs).metrics["weight"].tolist() == [1.0] * 10


def weights(objective, of_rho, tensors, rho, score):
    rows = of_rho([*rho, 0.0], score=[*[score] * len(rho), -score * len(rho)])
    return objective(tensors(rows)).metrics["weight"][:-1]


@pytest.mark.parametrize(("score", "k", "rate"), [(1.0, 2.0, 3.0), (-1.0, 3.0, 2.0)])
def test_the_weight_is_largest_at_k_over_lambda(score, k, rate, of_rho, tensors):
    rho = torch.linspace(-3, 3, 601, dtype=torch.float64)
    found = weights(VESPO(), of_rho, tensors, rho.tolist(), score)
    assert found.argmax().item() == (rho - math.log(k / rate)).abs().argmin().item()
    wanted = [math.exp(k * x + rate * (1 - math.exp(x))) for x in rho.tolist()]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_far_ratios_weigh_nothing_and_are_cut(of_rho, tensors):
    found = weights(VESPO(k_pos=0.5), of_rho, tensors, [9.0, 1e3, -18.0, -19.0, -1e3], 1.0)
    assert found[:2].tolist() == [0.0, 0.0]
    # 1e-8^0.5 e^3 is what a ratio of 1e-8 and all below weigh
    assert found[2].item() == pytest.approx(math.exp(-9.0 + 3 * (1 - math.exp(-18.0))))
    assert found[3:].tolist() == pytest.approx([1e-4 * math.exp(3.0)] * 2, rel=1e-6)


def test_a_token_counts_within_20_nats(golden, tensors):
    rows = golden(0, 1, score=[1.0, -1.0])
    rows[0]["policy"] = [row + x for row, x in zip(rows[0]["previous"], [30, -19, 0], strict=True)]
    found = VESPO()(tensors(rows)).metrics["weight"][0].item()
    assert found == pytest.approx(math.exp(2 * 1 + 3 * (1 - math.e)))  # 20 - 19
