"""Games small enough to be solved on paper."""

import math

import pytest
import torch
from torch import Tensor

from tests.fidelity.solvers import (
    exploitability,
    kl,
    kl_regularised_optimum,
    minimax_winner,
    regularised_exploitability,
    regularised_nash,
    rotation,
    stationarity_span,
    total_variation,
    win_rate,
)


def one(rows: list[list[float]]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def policy(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


STRONGER = one([[0.5, 0.7], [0.3, 0.5]])
EVEN_CYCLE = one([[0.5, 0.8, 0.2], [0.2, 0.5, 0.8], [0.8, 0.2, 0.5]])
# Margins 0.1 (0 over 1), 0.2 (1 over 2), 0.3 (2 over 0).
UNEVEN_CYCLE = one([[0.5, 0.6, 0.2], [0.4, 0.5, 0.7], [0.8, 0.3, 0.5]])


def test_kl_by_hand():
    # 1/2 log 2 + 1/2 log(2/3) = 1/2 (0.6931472 - 0.4054651) = 0.1438410
    assert kl(policy(0.5, 0.5), policy(0.25, 0.75)).item() == pytest.approx(0.1438410362258905)
    # From 1/2 to (1 +- e) / 2: e^2 / 2 up to order e^4, far below what the plain sum resolves.
    e = 1e-9
    near = policy(0.5, 0.5) + torch.tensor([[e, -e]], dtype=torch.float64).log1p()
    assert kl(policy(0.5, 0.5), near).item() == pytest.approx(e**2 / 2, rel=1e-6)


def test_total_variation_by_hand():
    assert total_variation(policy(0.5, 0.5).exp(), policy(0.25, 0.75).exp()).item() == 0.25


def test_win_rate_and_exploitability_by_hand():
    # Against (1/4, 3/4): action 0 wins 0.5/4 + 0.7*3/4 = 0.65, action 1 wins 0.3/4 + 0.5*3/4 = 0.45
    mixed = policy(0.25, 0.75)
    assert win_rate(STRONGER, mixed)[0].tolist() == pytest.approx([0.65, 0.45])
    assert exploitability(STRONGER, mixed).item() == pytest.approx(0.15)
    assert exploitability(STRONGER, policy(1.0, 0.0)).item() == pytest.approx(0.0)
    assert exploitability(EVEN_CYCLE, policy(1 / 3, 1 / 3, 1 / 3)).item() == pytest.approx(0.0)


def test_kl_regularised_optimum_by_hand():
    # (1/4 e^2, 3/4) / Z with r/beta = (2, 0): odds e^2 / 3
    found = kl_regularised_optimum(policy(0.25, 0.75), torch.tensor([[1.0, 0.0]]).double(), 0.5)
    assert found[0].exp()[0].item() == pytest.approx(math.exp(2) / (math.exp(2) + 3))


def test_minimax_winner_of_a_better_action_and_of_cycles():
    assert minimax_winner(STRONGER)[0].tolist() == pytest.approx([1, 0])
    assert minimax_winner(EVEN_CYCLE)[0].tolist() == pytest.approx([1 / 3] * 3)
    # Each action's share is the margin of the two others' duel: (0.2, 0.3, 0.1) / 0.6, since
    # then the margins against action 0 are 0.1 * 0.3 - 0.3 * 0.1 = 0, and so on.
    assert minimax_winner(UNEVEN_CYCLE)[0].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])


def test_minimax_winner_of_rewards_is_the_best_action():
    reward = torch.tensor([[0.3, -1.0, 0.9, 0.2], [2.0, 0.0, 1.9, -3.0]], dtype=torch.float64)
    winner = minimax_winner(torch.sigmoid(reward[:, :, None] - reward[:, None, :]))
    assert winner.argmax(-1).tolist() == [2, 0]
    assert winner.amax(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("tau", [0.02, 0.1, 1.0])
def test_regularised_nash_of_two_actions(tau: float):
    # Whoever the opponent is, action 0 wins 0.2 more, so the odds are those of the reference times
    # exp(0.2 / tau); at tau 0.1 and even odds, sigmoid(2) = 0.880797.
    reference = policy(0.25, 0.75)
    found = regularised_nash(STRONGER, reference, tau)
    odds = math.log(1 / 3) + 0.2 / tau
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(odds, abs=1e-9)
    even = regularised_nash(STRONGER, policy(0.5, 0.5), 0.1)
    assert even[0, 0].exp().item() == pytest.approx(0.8807970779778823)


def test_regularised_nash_of_a_cycle():
    even = policy(1 / 3, 1 / 3, 1 / 3)
    assert torch.allclose(regularised_nash(EVEN_CYCLE, even, 0.05), even)
    # As tau falls the equilibrium tends to the minimax winner.
    found = regularised_nash(UNEVEN_CYCLE, policy(0.5, 0.3, 0.2), 1e-3)
    assert total_variation(found.exp(), minimax_winner(UNEVEN_CYCLE)).item() < 0.01


def test_nobody_gains_by_leaving_the_regularised_nash():
    reference, tau = policy(0.5, 0.3, 0.2), 0.1
    found = regularised_nash(UNEVEN_CYCLE, reference, tau)
    assert stationarity_span(UNEVEN_CYCLE, reference, tau, found).item() < 1e-12
    gap = regularised_exploitability(UNEVEN_CYCLE, reference, tau, found).item()
    assert gap == pytest.approx(0, abs=1e-12)
    # The best reply's value is a maximum over policies: a search over the simplex must find it.
    opponent = policy(0.2, 0.5, 0.3)
    grid = torch.cartesian_prod(*[torch.linspace(0.005, 0.985, 197).double()] * 2)
    grid = torch.cat([grid, 1 - grid.sum(-1, keepdim=True)], -1)
    grid = grid[grid[:, 2] > 0.001].log()
    wins = (grid.exp() * win_rate(UNEVEN_CYCLE, opponent)).sum(-1)
    best = (wins - tau * kl(grid, reference.expand_as(grid))).max()
    claimed = regularised_exploitability(UNEVEN_CYCLE, reference, tau, opponent)
    searched = best + tau * kl(opponent, reference) - 0.5
    assert claimed.item() == pytest.approx(searched.item(), abs=1e-4)


def test_rotation_by_hand():
    # At the uniform policy (P - 1/2)(diag pi - pi pi^T) = A / 3, and A with margins 0.3 has the
    # eigenvalues 0 and +-0.3 sqrt(3) i.
    omega = rotation(EVEN_CYCLE, policy(1 / 3, 1 / 3, 1 / 3)).item()
    assert omega == pytest.approx(0.3 * math.sqrt(3) / 3)
    assert rotation(STRONGER, policy(0.5, 0.5)).item() == pytest.approx(0, abs=1e-9)
