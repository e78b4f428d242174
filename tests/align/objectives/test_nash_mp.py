"""Nash-MP: golden rows, its scale against INPO, its policy gradient, its tabular optimum.

The fixture's `previous` stands for the anchor: gaps h = [0.4, 0.8] to the reference, [0.15, 0.15]
to the anchor.
"""

import pytest
import torch

from align.objectives import INPO, NashMP
from align.types import Logps, Pair, PairInputs


@pytest.fixture
def anchored(golden):
    def build(dtype=torch.float64, **fields):
        return golden(dtype, anchor=golden(dtype, previous=...).previous, **fields)

    return build


def test_golden_hard(anchored, assert_golden, dtype):
    # g = 0.2 [0.4, 0.8] + [0.15, 0.15]/2 = [0.155, 0.235]; less 1/2: [-0.345, -0.265]
    # squared [0.119025, 0.070225]; dL/dlogp_chosen = 2 (0.2 + 1/2) [-0.345, -0.265] / 2
    assert_golden(
        NashMP(beta=0.2, eta=2.0),
        anchored(dtype),
        0.094625,
        [0.119025, 0.070225],
        [-0.2415, -0.1855],
        [0.2415, 0.1855],
    )


def test_golden_soft(anchored, assert_golden):
    # p = [0.75, 0.4]: [0.155 - 0.25, 0.235 + 0.1] = [-0.095, 0.335]; gradient 0.7 times these
    assert_golden(
        NashMP(beta=0.2, eta=2.0),
        anchored(preference=torch.tensor([0.75, 0.4], dtype=torch.float64)),
        0.060625,
        [0.009025, 0.112225],
        [-0.0665, 0.2345],
        [0.0665, -0.2345],
    )


@pytest.mark.parametrize(("beta", "eta"), [(0.1, 2.0), (0.05, 0.4), (1.0, 7.0)])
@pytest.mark.parametrize("p", [None, [0.9, 0.2]])
def test_it_is_inpo_in_another_scale(golden, anchored, beta, eta, p):
    p = None if p is None else torch.tensor(p, dtype=torch.float64)
    scale = beta + 1 / eta
    inpo = INPO(eta=scale, tau=beta)(golden(previous=..., preference=p)).loss
    found = NashMP(beta=beta, eta=eta)(anchored(preference=p)).loss
    torch.testing.assert_close(found, scale**2 * inpo, rtol=0, atol=1e-12)


def test_the_reward_is_what_is_compared(anchored):
    # 0.2 [0.2, 0.5] + [0.1, -0.1]/2; 0.2 [-0.2, -0.3] + [-0.05, -0.25]/2
    reward = NashMP(beta=0.2, eta=2.0)(anchored()).reward
    assert reward.chosen.tolist() == pytest.approx([0.09, 0.05])
    assert reward.rejected.tolist() == pytest.approx([-0.065, -0.185])


def test_over_self_play_pairs_it_is_the_policy_gradient():
    # Weighed by pi x pi, d loss / d logits = -4 (beta + 1/eta) d/d logits of
    # sum_y pi(y) [P(y beats pi) - beta rho(y) - a(y)/eta], brackets and opponent frozen
    generator, beta, eta, size = torch.Generator().manual_seed(21), 0.1, 1 / 0.7, 5

    def table():
        return torch.randn(size, generator=generator, dtype=torch.float64).log_softmax(0)

    reference, anchor, logits = table(), table(), table().requires_grad_()
    margin = torch.rand(size, size, generator=generator, dtype=torch.float64) - 0.5
    wins = 0.5 + (margin - margin.T) / 2
    first, second = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
    mask = torch.ones(size**2, 1, dtype=torch.bool)

    def pair(values):
        return Pair(Logps(values[first, None], mask), Logps(values[second, None], mask))

    policy = logits.log_softmax(0)
    law = policy.detach().exp()
    loss = NashMP(beta=beta, eta=eta)(
        PairInputs(
            policy=pair(policy),
            reference=pair(reference),
            anchor=pair(anchor),
            preference=wins[first, second],
        )
    ).loss
    (found,) = torch.autograd.grad(
        (law[first] * law[second] * loss).sum(), logits, retain_graph=True
    )
    now = policy.detach()
    advantage = wins @ law - beta * (now - reference) - (now - anchor) / eta
    (wanted,) = torch.autograd.grad((advantage * policy.exp()).sum(), logits)
    torch.testing.assert_close(found, -4 * (beta + 1 / eta) * wanted, rtol=0, atol=1e-12)


def test_the_tabular_optimum_is_the_proximal_step(table_optimum):
    # P(i beats j) = 1/2 + s_i - s_j: log pi = (beta ref + anchor/eta + s) / (beta + 1/eta) - log Z
    strength = torch.tensor([0.2, -0.1, 0.05, 0.0, -0.15], dtype=torch.float64)
    reference = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    anchor = torch.tensor([-0.4, 0.9, 0.1, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    found = table_optimum(
        NashMP(beta=0.1, eta=2.0),
        roles={"reference": reference, "anchor": anchor},
        preference=lambda first, second: 0.5 + strength[first] - strength[second],
    )
    wanted = ((0.1 * reference + anchor / 2 + strength) / 0.6).softmax(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
