"""Exact answers on finite bandits, found without any of the library's objectives.

Axes: X bandits (prompts), A actions. Policies are log-probs [X, A] in nats, float64, each row
normalised; P is [X, A, A] with P[x, i, j] = P(i beats j), so P + P^T = 1 and the diagonal is 1/2.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

SPAN = 5e-13  # where the regularised equilibrium counts as found


def normalised(logits: Tensor) -> Tensor:
    """[..., A] log-probs."""
    return torch.log_softmax(logits, dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """[X] nats: KL(p, q) of log-probs [X, A], accurate down to about 1e-24."""
    x = q - p
    # sum p (e^x - 1 - x) is the same number, without the first order that cancels; the series is
    # that of e^x - 1 - x, which loses its digits near 0.
    near = x**2 / 2 + x**3 / 6 + x**4 / 24
    return (p.exp() * torch.where(x.abs() < 1e-3, near, torch.expm1(x) - x)).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """[X] in [0, 1], of probabilities [X, A]."""
    return (p - q).abs().sum(-1) / 2


def kl_regularised_optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """[X, A] log-probs of argmax E reward - beta KL(., reference): pi_ref exp(r / beta) / Z."""
    return normalised(reference + reward / beta)


def win_rate(preference: Tensor, opponent: Tensor) -> Tensor:
    """[X, A]: P(action beats a sample of `opponent`, given by its log-probs)."""
    return torch.einsum("xij,xj->xi", preference, opponent.exp())


def exploitability(preference: Tensor, policy: Tensor) -> Tensor:
    """[X] in [0, 1/2]: what the best reply wins above a half; the duality gap is twice this."""
    return win_rate(preference, policy).amax(-1) - 0.5


def regularised_exploitability(
    preference: Tensor, reference: Tensor, tau: float, policy: Tensor
) -> Tensor:
    """[X]: the same in the game whose players pay tau KL(., reference); half its duality gap."""
    reply = tau * torch.logsumexp(reference + win_rate(preference, policy) / tau, -1)
    return reply + tau * kl(policy, reference) - 0.5


def stationarity_span(preference: Tensor, reference: Tensor, tau: float, policy: Tensor) -> Tensor:
    """[X] nats: 0 exactly where `policy` is the regularised equilibrium."""
    x = policy - reference - win_rate(preference, policy) / tau
    return x.amax(-1) - x.amin(-1)


def regularised_nash(preference: Tensor, reference: Tensor, tau: float) -> Tensor:
    """[X, A] log-probs of the one symmetric equilibrium of P(u beats v) - tau KL(u) + tau KL(v).

    Mirror prox with step 2, which contracts by 1 / (1 + 2 tau) per round (2505.19731).
    """
    policy, damp = reference, 1 / (1 + 2 * tau)
    for _ in range(int(60 / np.log1p(2 * tau)) + 100):
        base = policy + 2 * tau * reference
        half = normalised(damp * (base + 2 * win_rate(preference, policy)))
        policy = normalised(damp * (base + 2 * win_rate(preference, half)))
        if bool((stationarity_span(preference, reference, tau, policy) < SPAN).all()):
            return policy
    raise ArithmeticError(f"the regularised equilibrium at tau {tau:g} was not reached")


def minimax_winner(preference: Tensor) -> Tensor:
    """[X, A] probabilities of the von Neumann winner: max_u min_j sum_i u_i P[i, j], by simplex."""
    return torch.stack([_maximin(matrix.numpy()) for matrix in preference])


def rotation(preference: Tensor, policy: Tensor) -> Tensor:
    """[X] omega: the largest imaginary part of an eigenvalue of the game linearised at `policy`."""
    p = policy.exp()
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.linalg.eigvals((preference - 0.5) @ fisher).imag.abs().amax(-1)


def _maximin(matrix: np.ndarray) -> Tensor:
    actions = len(matrix)
    # Variables u_1..u_A and the value v: minimise -v, with v <= (u P)_j for every reply j.
    answer = linprog(
        c=[*[0.0] * actions, -1.0],
        A_ub=np.hstack([-matrix.T, np.ones((actions, 1))]),
        b_ub=np.zeros(actions),
        A_eq=[[*[1.0] * actions, 0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * actions + [(None, None)],
        method="highs-ds",
    )
    assert answer.status == 0, answer.message
    return torch.from_numpy(np.clip(answer.x[:actions], 0, None))
