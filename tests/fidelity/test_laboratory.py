"""The bandits are those of the design, and an expectation over pairs is what it says."""

import pytest
import torch

from tests.fidelity.laboratory import (
    FAMILIES,
    WRITTEN_WITH,
    Population,
    Row,
    bandits,
    curvature_of,
    product_law,
    uniform_law,
)
from tests.fidelity.solvers import exploitability, kl, minimax_winner, regularised_nash


@pytest.mark.parametrize(
    ("family", "of_reference", "support", "nash_kl"),
    [
        ("bradley-terry", 0.221, 1, 0.690),
        ("rock-paper-scissors", 0.151, 3, 0.357),
    ],
)
def test_families_are_those_of_the_published_figures(family, of_reference, support, nash_kl):
    # The figures were made by an implementation of its own, from the same generators.
    world = bandits(family, WRITTEN_WITH)
    assert world.shape == (40, 6)
    assert float(world.reference.exp().min()) == pytest.approx(0.028, abs=5e-4)
    assert torch.allclose(world.preference + world.preference.mT, torch.ones(()).double())
    reached = exploitability(world.preference, world.reference).mean()
    assert float(reached) == pytest.approx(of_reference, abs=1e-3)
    assert set(((minimax_winner(world.preference) > 1e-9).sum(-1)).tolist()) == {support}
    nash = regularised_nash(world.preference, world.reference, 0.1)
    assert float(kl(nash, world.reference).mean()) == pytest.approx(nash_kl, abs=1e-3)


def test_rows_are_ordered_pairs():
    world = bandits("bradley-terry", [0], actions=3)
    run = Population(
        {"name": "dpo"},
        uniform_law(world.reference),
        reference=world.reference,
        preference=world.preference,
    )
    inputs = run.inputs(world.reference)
    # Row x * 9 + i * 3 + j is bandit x with chosen i and rejected j; here x = 2, i = 0, j = 1.
    row = 2 * 9 + 0 * 3 + 1
    assert inputs.policy.chosen.total()[row] == world.reference[2, 0]
    assert inputs.policy.rejected.total()[row] == world.reference[2, 1]
    assert inputs.preference is not None
    assert inputs.preference[row] == world.preference[2, 0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_laws_are_distributions(family):
    reference = bandits(family, [3]).reference
    for law in (uniform_law(reference), product_law(reference)):
        assert torch.allclose(law.sum((1, 2)), torch.ones(4).double())


def test_one_step_of_least_squares_is_newtons_minimum():
    world = bandits("rock-paper-scissors", [0])
    node = {"name": "inpo", "eta": 0.4, "tau": 0.1}
    run = Population(
        node,
        product_law(world.reference),
        reference=world.reference,
        previous=world.reference,
        preference=world.preference,
    )
    one_step = run.regression_minimum(world.reference, curvature_of(node))
    assert torch.allclose(one_step, run.minimum(world.reference), atol=1e-12)
    assert float(run.gradient(one_step).abs().max()) < 1e-14


def test_gradient_agrees_with_differences():
    world = bandits("bradley-terry", [0], actions=4)
    run = Population(
        {"name": "dpo", "beta": 0.5},
        uniform_law(world.reference),
        reference=world.reference,
        preference=world.preference,
    )
    at = world.reference + torch.linspace(0, 1, 4, dtype=torch.float64)
    for k in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = 1e-6
        slope = (run.loss(at + step) - run.loss(at - step)) / 2e-6
        assert torch.allclose(run.gradient(at)[:, k], slope, atol=1e-9)


def test_a_row_that_is_not_a_number_is_not_reached():
    for sense in ("<=", ">="):
        assert not Row("dpo", "claim", "theorem", float("nan"), sense, 1.0).ok
    assert Row("dpo", "claim", "theorem", 1.0, "<=", 1.0).ok
    assert not Row("dpo", "claim", "theorem", 0.9, ">=", 1.0).ok
