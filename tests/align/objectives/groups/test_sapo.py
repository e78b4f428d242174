"""SAPO: golden rows, the slope at a ratio of 1, no gate towards temperature 0, both sides."""

import math

import pytest
import torch

from align.objectives import SAPO, GroupRelative


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2], tau = [1, 2, 2]; gate 4 / tau s, s = sigmoid(tau (u - 1)):
    # of the first completion 0.5128149670, 0.4878097723, 0.5262685211, and L = -1.1 * 4 / 3 of
    # their sum 1.5268932604;
    # dL/dlogp = -A 4 s (1 - s) u / T / 3
    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    x = [[0.05, -0.05, 0.1], [-0.05, 0.1, -0.15, 0.05], [-0.1, 0.1, -0.05, -0.05]]
    gradients = []
    for a, tau, row in zip([1.1, -0.9, -0.2], [1.0, 2.0, 2.0], x, strict=True):
        s = [sigmoid(tau * (math.exp(t) - 1)) for t in row]
        gradients.append(
            [-a * 4 * p * (1 - p) * math.exp(t) / len(row) / 3 for p, t in zip(s, row, strict=True)]
        )
    assert gradients[0] == pytest.approx([-0.1284042862, -0.1161922676, -0.1347036155], abs=1e-9)
    assert_golden(
        SAPO(scale="none", temperature_pos=1.0, temperature_neg=2.0),
        tensors(golden(0, 1, 2), dtype),
        [-2.2394434486, 0.8929982333, 0.1956222309],
        gradients,
    )


def test_it_is_the_formula_in_plain_python(random_rows, by_group, assert_is):
    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            mean = sum(rows[i]["score"] for i in members) / len(members)
            for i in members:
                a, r = rows[i]["score"] - mean, rows[i]
                tau = 0.7 if a > 0 else 1.9
                for new, old, ref in zip(r["policy"], r["previous"], r["reference"], strict=True):
                    gate = 4 / tau / (1 + math.exp(-tau * (math.exp(new - old) - 1)))
                    kl = math.exp(ref - new) - (ref - new) - 1
                    losses[i] -= (gate * a - 0.2 * kl) / len(r["policy"])
        return losses

    objective = SAPO(scale="none", temperature_pos=0.7, temperature_neg=1.9, kl_beta=0.2)
    assert_is(objective, random_rows(0), formula)


@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_on_policy_its_gradient_is_that_of_group_relative(tau, random_rows, tensors, gradients):
    inputs = tensors([{**row, "previous": row["policy"]} for row in random_rows(1)])
    _, found = gradients(SAPO(temperature_pos=tau, temperature_neg=2 * tau), inputs)
    _, wanted = gradients(GroupRelative(), inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)


def test_towards_temperature_0_there_is_no_gate(random_rows, tensors, gradients):
    inputs = tensors(random_rows(2))
    _, wanted = gradients(GroupRelative(clip=1e6), inputs)
    errors = []
    for tau in (1e-2, 1e-3):
        _, found = gradients(SAPO(temperature_pos=tau, temperature_neg=tau), inputs)
        errors.append((found - wanted).abs().max().item())
    assert errors[1] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)  # of second order in tau


def test_the_gate_falls_off_on_both_sides_and_faster_for_bad_completions(
    of_rho, tensors, gradients
):
    rho = [0.0, math.log(2), math.log(0.5)]  # u = 1, 2, 0.5
    slopes = {}
    for sign in (1.0, -1.0):
        inputs = tensors(of_rho([*rho, 0.0], score=[sign, sign, sign, -3 * sign]))
        objective = SAPO(scale="none", temperature_pos=1.0, temperature_neg=3.0)
        _, found = gradients(objective, inputs)
        u = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
        slopes[sign] = (-4 * sign * found[:3, 0] / u).tolist()
    for sign, tau in ((1.0, 1.0), (-1.0, 3.0)):
        s = 1 / (1 + math.exp(-tau)), 1 / (1 + math.exp(tau / 2))
        wanted = [1.0, 4 * s[0] * (1 - s[0]), 4 * s[1] * (1 - s[1])]
        assert slopes[sign] == pytest.approx(wanted)
    assert slopes[-1.0][1] < slopes[1.0][1] < 1
