"""What the objectives on fixed pairs must reach: closed-form optima and exact identities.

Every function answers for the bandits of `seeds` with rows of the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.laboratory import (
    Bandits,
    Population,
    Row,
    bandits,
    product_law,
    uniform_law,
)
from tests.fidelity.solvers import (
    kl,
    kl_regularised_optimum,
    normalised,
    total_variation,
    win_rate,
)

CLOSED_FORM = 1e-6  # nats, the largest error of a log-prob
IDENTITY = 1e-12
FLIPS = 0.3


def dpo(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """DPO on Bradley-Terry preferences ends at the KL-regularised optimum of the true reward."""
    world, beta = bandits("bradley-terry", seeds, actions), 0.5
    node = {"name": "dpo", "beta": beta}
    optimum = kl_regularised_optimum(world.reference, world.known_reward, beta)
    errors, gaps = [], []
    for law in _laws(world):
        # Recorded labels: of a pair that is drawn, i is the chosen one with probability P[i, j].
        hard = Population(node, 2 * law * world.preference, reference=world.reference)
        soft = Population(node, law, reference=world.reference, preference=world.preference)
        errors += [_error(hard.minimum(world.reference), optimum)]
        errors += [_error(soft.minimum(world.reference), optimum)]
        elsewhere = _perturbed(world.reference, 0.5, seed=1)
        gaps.append(_error(hard.gradient(elsewhere), soft.gradient(elsewhere)))
    return [
        _closed_form("dpo", "minimum = pi_ref exp(r/beta) / Z, 3 pair laws, hard and soft", errors),
        _identity("dpo", "hard and soft labels: one expected gradient", gaps),
    ]


def copg(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """CoPG ends at the same optimum whoever sampled the pairs; its squared form is IPO's."""
    world, beta = bandits("bradley-terry", seeds, actions), 0.5
    node = {"name": "copg", "beta": beta}
    optimum = kl_regularised_optimum(world.reference, world.known_reward, beta)
    reached, exact = [], []
    for law in _laws(world):
        run = Population(node, law, reference=world.reference, score=world.known_reward)
        reached.append(_error(run.minimum(world.reference), optimum))
        exact.append(float(run.gradient(optimum).abs().max()))
    return [
        _closed_form("copg", "minimum = pi_ref exp(R/beta) / Z, off-policy, 3 pair laws", reached),
        _identity("copg", "its gradient vanishes at the closed form", exact),
        _closed_form("copg", "the paper's bandit R = (2.5, 2, 1): softmax(R/beta)", _copg_bandit()),
    ]


def rdpo(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """With 30 % of the labels flipped, rDPO ends where DPO ends on clean ones; DPO does not."""
    world, beta = bandits("bradley-terry", seeds, actions), 0.5
    optimum = kl_regularised_optimum(world.reference, world.known_reward, beta)
    law = uniform_law(world.reference)
    clean = 2 * law * world.preference
    flipped = (1 - FLIPS) * clean + FLIPS * clean.mT
    robust = {"name": "rdpo", "beta": beta, "flip_probability": FLIPS}
    plain = {"name": "dpo", "beta": beta}
    anywhere = _perturbed(world.reference, 1.0, seed=2)
    noisy = Population(robust, flipped, reference=world.reference)
    gap = _error(
        noisy.gradient(anywhere),
        Population(plain, clean, reference=world.reference).gradient(anywhere),
    )
    naive = Population(plain, flipped, reference=world.reference).minimum(world.reference)
    pairs = 1000 * actions * (actions - 1)
    generator = torch.Generator().manual_seed(seeds[0])
    draws = torch.multinomial(flipped.flatten(1), pairs, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(draws, flipped[0].numel()).sum(1).to(flipped.dtype)
    sampled = (counts / pairs).reshape(flipped.shape)
    finite = Population(robust, sampled, reference=world.reference).minimum(world.reference)
    return [
        _closed_form(
            "rdpo",
            "30 % flips: minimum = DPO's on clean labels",
            [_error(noisy.minimum(world.reference), optimum)],
        ),
        _identity("rdpo", "30 % flips: expected gradient = DPO's on clean labels", [gap]),
        Row(
            "rdpo",
            "30 % flips, plain DPO: mean distance (TV) from the clean optimum",
            "empirical",
            _distance(naive, optimum),
            ">=",
            0.1,
        ),
        Row(
            "rdpo",
            "30 % flips, 1000 sampled labels for each pair, rDPO: mean distance (TV)",
            "empirical",
            _distance(finite, optimum),
            "<=",
            0.05,
        ),
    ]


def rpo(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """Where features are shared, DPO empties the chosen completion; RPO keeps its mass.

    One sure pair per bandit, policy = softmax(F theta) with three random features per action,
    plain gradient descent from the reference. Chosen and rejected are those between which a third
    action gains most from the DPO direction, so that DPO's collapse is there by construction.
    """
    world, beta, eta = bandits("bradley-terry", seeds, actions), 0.1, 10.0
    features, chosen, rejected = _displacing_pairs(*world.shape, seed=seeds[0])
    law = torch.zeros_like(world.preference)
    law[torch.arange(len(law)), chosen, rejected] = 1.0
    at_start = _of(world.reference, chosen)

    def descended(node: dict[str, object]) -> tuple[Tensor, Tensor]:
        run = Population(node, law, reference=world.reference)
        theta = torch.zeros(len(law), features.shape[-1], dtype=law.dtype)
        lowest = at_start.clone()
        logits = world.reference
        for _ in range(1000):
            lowest = torch.minimum(lowest, _of(normalised(logits), chosen))
            theta = theta - 0.1 * torch.einsum("xaf,xa->xf", features, run.gradient(logits))
            logits = world.reference + torch.einsum("xaf,xf->xa", features, theta)
        return _of(normalised(logits), chosen), lowest

    dpo_end, _ = descended({"name": "dpo", "beta": beta})
    rpo_end, rpo_lowest = descended({"name": "rpo", "beta": beta, "eta": eta})
    # L_RPO falls along the run, L_DPO >= 0 and L_DPO = log 2 at the start, which leaves this floor.
    floor = np.log(2) / (eta * beta)
    return [
        Row(
            "rpo",
            "nats of chosen lost on the way, at most log 2 / (eta beta)",
            "theorem",
            float((at_start - rpo_lowest).max()),
            "<=",
            floor,
        ),
        Row(
            "rpo",
            "shared features, RPO: least chosen mass at the end / at the start",
            "empirical",
            float((rpo_end - at_start).exp().min()),
            ">=",
            0.9,
        ),
        Row(
            "rpo",
            "shared features, plain DPO: median chosen mass at the end / at the start",
            "empirical",
            float((dpo_end - at_start).exp().median()),
            "<=",
            0.1,
        ),
        _closed_form(
            "rpo", "minimum on two actions = root of the derived gradient", _rpo_two_actions()
        ),
    ]


def others(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """Closed forms of the members that the experiments above do not name."""
    world = bandits("bradley-terry", seeds, actions)
    cyclic = bandits("rock-paper-scissors", seeds, actions)
    return [
        _cdpo(world),
        _ipo(cyclic),
        _rebel(world),
        _sppo(cyclic),
        *_p3o(world),
        _tgdpo(world),
    ]


def _cdpo(world: Bandits) -> Row:
    """Two actions, sure labels: the margin stops at log((1 - eps) / eps)."""
    beta, smoothing = 0.5, 0.1
    two = world.reference[:, :2] - torch.logsumexp(world.reference[:, :2], -1, keepdim=True)
    law = torch.zeros(len(two), 2, 2, dtype=two.dtype)
    law[:, 0, 1] = 1.0
    node = {"name": "cdpo", "beta": beta, "label_smoothing": smoothing}
    found = Population(node, law, reference=two).minimum(two) - two
    gap = beta * (found[:, 0] - found[:, 1]) - np.log((1 - smoothing) / smoothing)
    return _closed_form("cdpo", "sure labels: margin log((1-eps)/eps)", [float(gap.abs().max())])


def _ipo(world: Bandits) -> Row:
    """On pairs of the reference: the exact best reply to it at temperature tau."""
    law = product_law(world.reference)
    node = {"name": "ipo", "tau": 0.3}
    run = Population(node, law, reference=world.reference, preference=world.preference)
    wins = win_rate(world.preference, world.reference)
    answer = kl_regularised_optimum(world.reference, wins, 0.3)
    found = run.minimum(world.reference)
    return _closed_form(
        "ipo", "minimum = pi_ref exp(P(. beats pi_ref)/tau) / Z", [_error(found, answer)]
    )


def _rebel(world: Bandits) -> Row:
    node = {"name": "rebel", "eta": 1.7}
    law, reward = product_law(world.reference), world.known_reward
    run = Population(node, law, previous=world.reference, score=reward)
    answer = normalised(world.reference + 1.7 * reward)
    found = run.minimum(world.reference)
    return _closed_form("rebel", "minimum = pi_t exp(eta R) / Z", [_error(found, answer)])


def _sppo(world: Bandits) -> Row:
    """The loss per completion replaces log Z by eta / 2: near the Hedge step at eta 1."""
    wins = win_rate(world.preference, world.reference)
    law = product_law(world.reference)
    run = Population({"name": "sppo", "beta": 1.0}, law, previous=world.reference, score=wins)
    far = kl(run.minimum(world.reference), normalised(world.reference + wins))
    return Row("sppo", "KL from the Hedge step, beta 1", "empirical", float(far.max()), "<=", 1e-5)


def _p3o(world: Bandits) -> list[Row]:
    """Its first gradient is half of CoPG's; refreshing `previous`, it ends at CoPG's optimum."""
    beta, rows = 0.5, []
    optimum = kl_regularised_optimum(world.reference, world.known_reward, beta)
    start = _perturbed(world.reference, 0.5, seed=3)
    frozen = {"reference": world.reference, "score": world.known_reward}
    for form in ("joint", "separate"):
        node = {"name": "p3o", "kl_beta": beta, "clip": 0.2, "form": form}
        law = product_law(start)
        first = Population(node, law, previous=start, **frozen).gradient(start)
        half = Population({"name": "copg", "beta": beta}, law, **frozen).gradient(start) / 2
        rows.append(
            _identity("p3o", f"{form}: first gradient = half of CoPG's", [_error(first, half)])
        )
        policy = world.reference
        for _ in range(200):
            run = Population(node, product_law(policy), previous=policy, **frozen)
            policy = normalised(policy - 0.5 * run.gradient(policy) / policy.exp())
        rows.append(
            _closed_form(
                "p3o",
                f"{form}: 200 rounds end at pi_ref exp(R/beta) / Z",
                [_error(policy, optimum)],
            )
        )
    return rows


def _tgdpo(world: Bandits) -> Row:
    """A guide that is the reference weighs every token by 1."""
    node = {"name": "tgdpo", "beta": 0.5, "alpha": 0.5}
    law = 2 * uniform_law(world.reference) * world.preference
    run = Population(node, law, reference=world.reference, guide=world.reference)
    optimum = kl_regularised_optimum(world.reference, world.known_reward, 0.5)
    found = run.minimum(world.reference)
    return _closed_form("tgdpo", "guide = reference: DPO's closed form", [_error(found, optimum)])


def _copg_bandit() -> list[float]:
    reward = torch.tensor([[2.5, 2.0, 1.0]], dtype=torch.float64)
    reference = torch.full_like(reward, 1 / 3).log()
    sampler = torch.tensor([[0.01, 0.04, 0.95]], dtype=torch.float64).log()
    node = {"name": "copg", "beta": 0.5}
    run = Population(node, product_law(sampler), reference=reference, score=reward)
    return [_error(run.minimum(reference), normalised(reward / 0.5))]


def _rpo_two_actions() -> list[float]:
    """Two actions, the first chosen with probability p, z the logit of the first over the second.

    With h = z - z_ref and q = sigmoid(z), dL/dz = beta (sigmoid(beta h) - p) from DPO and
    -eta beta (p (1 - q) - (1 - p) q) = -eta beta (p - q) from the likelihood of the chosen one;
    the root is found here by bisection.
    """
    beta, eta, p, reference = 0.5, 0.3, 0.8, torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    law = torch.tensor([[[0.0, p], [1 - p, 0.0]]], dtype=torch.float64)
    node = {"name": "rpo", "beta": beta, "eta": eta}
    found = Population(node, law, reference=reference).minimum(reference)
    z_ref = float(reference[0, 0] - reference[0, 1])
    low, z, high = -20.0, 0.0, 20.0
    for _ in range(80):
        z = (low + high) / 2
        q = 1 / (1 + np.exp(-z))
        slope = beta * (1 / (1 + np.exp(-beta * (z - z_ref))) - p) - eta * beta * (p - q)
        low, high = (z, high) if slope < 0 else (low, z)
    return [abs(float(found[0, 0] - found[0, 1]) - z)]


def _displacing_pairs(count: int, actions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [X, A, 3], and the pair that leaves a third action furthest ahead of chosen, [X]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, actions, 3, generator=generator, dtype=torch.float64)
    gram = torch.einsum("xif,xjf->xij", features, features)
    # Along f_i - f_j the logit of k grows by gram[k, i] - gram[k, j].
    gain = gram[:, :, :, None] - gram[:, :, None, :]
    ahead = gain.amax(1) - torch.diagonal(gain, dim1=1, dim2=2).mT
    flat = ahead.flatten(1).argmax(-1)
    return features, flat // actions, flat % actions


def _laws(world: Bandits) -> list[Tensor]:
    uneven = _perturbed(world.reference, 1.0, seed=0)
    return [uniform_law(world.reference), product_law(world.reference), product_law(uneven)]


def _perturbed(policy: Tensor, size: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(policy.shape, generator=generator, dtype=policy.dtype)
    return normalised(policy + size * noise)


def _of(policy: Tensor, action: Tensor) -> Tensor:
    return policy.gather(1, action[:, None])[:, 0]


def _error(found: Tensor, answer: Tensor) -> float:
    return float((found - answer).abs().max())


def _distance(found: Tensor, answer: Tensor) -> float:
    return float(total_variation(found.exp(), answer.exp()).mean())


def _closed_form(method: str, claim: str, errors: Sequence[float]) -> Row:
    return Row(method, claim, "theorem", max(errors), "<=", CLOSED_FORM)


def _identity(method: str, claim: str, errors: Sequence[float]) -> Row:
    return Row(method, claim, "theorem", max(errors), "<=", IDENTITY)
