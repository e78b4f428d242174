"""Direct Advantage: golden rows, the optimum, and the formula in plain numbers."""

import pytest

from align.objectives import DirectAdvantage


def test_golden(of_rho, tensors, assert_golden, dtype):
    # A / beta - rho = [3 - 0.2, -2 + 0.1, 0 - 0.05] = [2.8, -1.9, -0.05]; half squares
    # [3.92, 1.805, 0.00125], mean 1.90875; gradient -[2.8, -1.9, -0.05] / 3
    inputs = tensors(of_rho([0.2, -0.1, 0.05], advantage=[0.3, -0.2, 0.0]), dtype)
    assert_golden(
        DirectAdvantage(beta=0.1),
        inputs,
        [3.92, 1.805, 0.00125],
        [-0.9333333333, 0.6333333333, 0.0166666667],
    )
    loss = DirectAdvantage(beta=0.1)(inputs).loss.mean().item()
    assert loss == pytest.approx(1.90875, rel=1e-5)


def test_it_is_the_formula_in_plain_numbers(random_rows, assert_is):
    def formula(rows):
        return [
            (r["advantage"] / 0.05 - sum(r["policy"]) + sum(r["reference"])) ** 2 / 2 for r in rows
        ]

    assert_is(DirectAdvantage(beta=0.05), random_rows(0), formula)


def test_the_optimum_is_the_advantage_over_beta(of_rho, tensors, gradients):
    inputs = tensors(of_rho([2.0, -1.0], advantage=[0.2, -0.1]))
    loss, gradient = gradients(DirectAdvantage(beta=0.1), inputs)
    assert loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-20)
    assert gradient.abs().max() < 1e-12
    assert DirectAdvantage(beta=0.1)(inputs).reward.tolist() == pytest.approx([0.2, -0.1])


def test_a2po_of_trl_is_this_in_other_units(random_rows, tensors):
    # (beta rho - (r - V*))^2, with the value of the prompt taken off beforehand
    rows, beta = random_rows(1), 0.05
    rho = [sum(row["policy"]) - sum(row["reference"]) for row in rows]
    wanted = [(beta * x - row["advantage"]) ** 2 for x, row in zip(rho, rows, strict=True)]
    found = 2 * beta**2 * DirectAdvantage(beta=beta)(tensors(rows)).loss
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
