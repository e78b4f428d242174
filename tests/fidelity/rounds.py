"""What the objectives that play themselves must reach, round by round.

Every function answers for the bandits of `seeds` with rows of the table. A round is the exact
minimum of the shipped objective over all pairs, so what is left is the theory of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.laboratory import (
    FAMILIES,
    Bandits,
    Population,
    Row,
    bandits,
    curvature_of,
    product_law,
    uniform_law,
)
from tests.fidelity.solvers import (
    exploitability,
    kl,
    kl_regularised_optimum,
    minimax_winner,
    normalised,
    regularised_exploitability,
    regularised_nash,
    rotation,
    total_variation,
    win_rate,
)

SHORT = {"bradley-terry": "BT", "rock-paper-scissors": "RPS"}
ACCURATE = 1e-20  # nats; below this a KL is rounding


def inpo_rounds(world: Bandits, tau: float, eta: Callable[[int], float]) -> Iterator[Tensor]:
    """[X, A] log-probs of pi_0 = reference, pi_1, ...; `eta` by round."""
    policy, fixed = world.reference, float("nan")
    for t in range(10**9):
        yield policy
        node = {"name": "inpo", "eta": eta(t), "tau": tau}
        fixed = curvature_of(node) if t == 0 else fixed  # (lp - ...)^2 whatever eta and tau are
        run = Population(
            node,
            product_law(policy),
            reference=world.reference,
            previous=policy,
            preference=world.preference,
        )
        policy = run.regression_minimum(policy, fixed)


def nash_mp_rounds(world: Bandits, beta: float, eta: float) -> Iterator[Tensor]:
    """[X, A] of pi_0, pi_1, ...; two evaluations of the preference per round, both from pi_k."""
    node = {"name": "nash_mp", "beta": beta, "eta": eta}
    curvature, anchor = curvature_of(node), world.reference

    def against(opponent: Tensor) -> Tensor:
        run = Population(
            node,
            product_law(opponent),
            reference=world.reference,
            anchor=anchor,
            preference=world.preference,
        )
        return run.regression_minimum(opponent, curvature)

    while True:
        yield anchor
        anchor = against(against(anchor))


def spo_rounds(world: Bandits, eta: float, start: Tensor) -> Iterator[Tensor]:
    """[X, A] of pi_0 = start, pi_1, ...: Hedge on the win rates against pi_t."""
    node = {"name": "spo", "eta": eta}
    curvature, policy = curvature_of(node), start
    while True:
        yield policy
        wins = win_rate(world.preference, policy)
        run = Population(node, product_law(policy), previous=policy, score=wins)
        policy = run.regression_minimum(policy, curvature)


def apo_rounds(world: Bandits, beta: float, momentum: float) -> Iterator[Tensor]:
    """[X, A] of pi_0 = reference, pi_1, ...: DPO of every round on uniformly drawn pairs."""
    node = {"name": "apo", "beta": beta, "momentum": momentum, "inner": "dpo"}
    law = uniform_law(world.reference)
    previous = earlier = world.reference
    while True:
        yield previous
        run = Population(node, law, previous=previous, earlier=earlier, preference=world.preference)
        previous, earlier = run.minimum(previous), previous


def inpo(seeds: Sequence[int], actions: int = 6, sampled_pairs: int = 3000) -> list[Row]:
    """The gradient identities, the one-step inequality, the limit of stability, the equilibrium."""
    rows: list[Row] = []
    worlds = [bandits(family, seeds, actions) for family in FAMILIES]
    for world in worlds:
        rows += _inpo_gradients(world)
    for world in worlds:
        rows += _inpo_schedule(world)
    for world in worlds:
        rows += _inpo_constant(world)
    rows += _inpo_unstable(worlds[1])
    for world in worlds:
        rows += _inpo_pair_laws(world)
        rows += _inpo_sampled(world, sampled_pairs)
    return rows


def nash_mp(seeds: Sequence[int], actions: int = 6) -> list[Row]:
    """Every round's contraction, the queries it takes, and the self-play gradient."""
    rows: list[Row] = []
    for family in FAMILIES:
        world = bandits(family, seeds, actions)
        rows.append(_self_play_gradient(world))
        for eta in (0.5, 1.0, 2.0):
            rows.append(_contraction(world, 0.1, eta, 300))
        rows += [_contraction(world, beta, 2.0, 200) for beta in (0.05, 0.3, 1.0)]
        rows += _queries(world, 0.1)
        rows.append(_nash_span(world, 0.1))
    rows.append(_moving_anchor(bandits("rock-paper-scissors", seeds, actions)))
    return rows


def apo(seeds: Sequence[int], actions: int = 6, rounds: int = 10) -> list[Row]:
    """log pi_T = log pi_ref + S_T r / beta, which momentum makes grow faster than T."""
    world, beta = bandits("bradley-terry", seeds, actions), 2.0
    reward, errors, exact, gaps = world.known_reward, [], [], {}
    for momentum in (0.0, 0.3, 0.5, 0.8):
        path = list(islice(apo_rounds(world, beta, momentum), rounds + 1))
        closed = [_accelerated(world, beta, momentum, t) for t in range(rounds + 1)]
        errors += [
            float((at - answer).abs().max()) for at, answer in zip(path, closed, strict=True)
        ]
        gaps[momentum] = [_suboptimality(reward, at) for at in path]
        node = {"name": "apo", "beta": beta, "momentum": momentum, "inner": "dpo"}
        for t in range(1, 6):
            now, before = closed[t - 1], closed[max(t - 2, 0)]
            hat = normalised((1 + momentum) * now - momentum * before)
            for law in (product_law(hat), uniform_law(now), product_law(now)):
                run = Population(
                    node, law, previous=now, earlier=before, preference=world.preference
                )
                exact.append(float(run.gradient(closed[t]).abs().max()))
    slowest = max(
        float((gaps[momentum][t] / gaps[0.0][t]).max())
        for momentum in (0.3, 0.5, 0.8)
        for t in range(2, rounds + 1)
    )
    bound = max(
        float((gaps[momentum][t] * _s(momentum, t) / (beta * _worst_start(world))).max())
        for momentum in gaps
        for t in range(1, rounds + 1)
    )
    return [
        Row(
            "apo",
            f"S_T closed form, {rounds} rounds, 4 momenta",
            "theorem",
            max(errors),
            "<=",
            1e-10,
        ),
        Row("apo", "gradient at the closed form, 3 pair laws", "theorem", max(exact), "<=", 1e-12),
        Row(
            "apo",
            "suboptimality / that without momentum, rounds 2 on",
            "theorem",
            slowest,
            "<=",
            1.0,
        ),
        Row("apo", "suboptimality x S_T / (beta log 1/pi_ref(y*))", "theorem", bound, "<=", 1.0),
        _apo_hedge(bandits("rock-paper-scissors", seeds, actions)),
    ]


def spo(seeds: Sequence[int], actions: int = 6, rounds: int = 10_000) -> list[Row]:
    """The average policy's exploitability, and what a Bradley-Terry reward cannot do."""
    rows: list[Row] = []
    for family in FAMILIES:
        world = bandits(family, seeds, actions)
        start = torch.full_like(world.reference, 1 / actions).log()
        eta = float(np.sqrt(8 * np.log(actions) / rounds))
        average = torch.zeros_like(start)
        for policy in islice(spo_rounds(world, eta, start), rounds):
            average += policy.exp() / rounds
        bound = float(np.sqrt(np.log(actions) / (2 * rounds)))
        rows.append(
            Row(
                "spo",
                f"{SHORT[family]}: the average's exploitability / sqrt(log A / 2T), T {rounds:,}",
                "theorem",
                float(exploitability(world.preference, average.log()).max()) / bound,
                "<=",
                1.0,
            )
        )
        if family == "rock-paper-scissors":
            distance = total_variation(average, minimax_winner(world.preference))
            rows.append(
                Row(
                    "spo",
                    f"RPS: distance (TV) of the average from the minimax winner, T = {rounds:,}",
                    "empirical",
                    float(distance.max()),
                    "<=",
                    0.05,
                )
            )
            rows += _reward_fails(world, average)
    return rows


def _inpo_gradients(world: Bandits) -> list[Row]:
    """Hard, soft and win-rate losses: one gradient, zero at pi_ref^a pi_t^(1-a) exp(P/eta)."""
    tau, eta = 0.1, 0.4
    previous = _near(world.reference, 0.3, 7)
    wins, law = win_rate(world.preference, previous), product_law(previous)
    closed = normalised((tau * world.reference + (eta - tau) * previous + wins) / eta)
    roles = {"reference": world.reference, "previous": previous}
    node = {"name": "inpo", "eta": eta, "tau": tau}
    runs = [
        Population(node, 2 * law * world.preference, **roles),
        Population(node, law, preference=world.preference, **roles),
        Population({"name": "spo", "eta": 1 / eta, "tau": tau}, law, score=wins, **roles),
    ]
    elsewhere = _near(closed, 0.2, 8)
    zero = max(float(run.gradient(closed).abs().max()) for run in runs)
    slopes = [run.gradient(elsewhere) for run in runs]
    apart = max(float((slope - slopes[0]).abs().max()) for slope in slopes)
    short = SHORT[world.family]
    return [
        Row(
            "inpo",
            f"{short}: gradient at the closed form, 3 label kinds",
            "theorem",
            zero,
            "<=",
            1e-12,
        ),
        Row("inpo", f"{short}: hard = soft = win-rate gradient", "theorem", apart, "<=", 1e-12),
    ]


def _inpo_schedule(world: Bandits) -> list[Row]:
    """eta_t = tau (t + 2) / 2."""
    tau, horizon, short = 0.1, 1000, SHORT[world.family]
    nash = regularised_nash(world.preference, world.reference, tau)
    spread = (nash - world.reference).abs().amax(-1)
    before, kls, excess, over_bound = None, {}, [], []
    for t, policy in enumerate(islice(inpo_rounds(world, tau, _schedule(tau)), horizon + 1)):
        spread = torch.maximum(spread, (policy - world.reference).abs().amax(-1))
        c, now = torch.clamp(spread.clamp(min=1.0) * tau, min=1.0), kl(nash, policy)
        if before is not None:
            eta = _schedule(tau)(t - 1)
            excess.append(float((now - (1 - tau / eta) * before - 8 * c**2 / eta**2).max()))
            over_bound.append(float((now * tau**2 * (t + 1) / (32 * c**2)).max()))
        before = now
        kls[t] = float(now.max())
    return [
        Row(
            "inpo",
            f"{short}: one-step inequality, excess over {horizon} rounds",
            "theorem",
            max(excess),
            "<=",
            1e-13,
        ),
        Row(
            "inpo",
            f"{short}: KL / (32 C^2 / (tau^2 (T + 1)))",
            "theorem",
            max(over_bound),
            "<=",
            1.0,
        ),
        Row(
            "inpo",
            f"{short}: KL to the regularised Nash, schedule, T = 100",
            "empirical",
            kls[100],
            "<=",
            2e-4,
        ),
        Row(
            "inpo",
            f"{short}: KL to the regularised Nash, schedule, T = 1000",
            "empirical",
            kls[1000],
            "<=",
            2e-8,
        ),
    ]


def _inpo_constant(world: Bandits) -> list[Row]:
    """Above the limit of stability: convergence, at the rate of the linearisation."""
    tau, short = 0.1, SHORT[world.family]
    nash = regularised_nash(world.preference, world.reference, tau)
    omega = rotation(world.preference, nash)
    eta = max(2 * float(_critical(tau, omega).max()), 1.05 * tau)
    path = islice(inpo_rounds(world, tau, lambda _: eta), 301)
    kls = torch.stack([kl(nash, policy) for policy in path])
    rows = [
        Row(
            "inpo",
            f"{short}: KL after 300 rounds, eta = 2 x the limit",
            "local",
            float(kls[-1].max()),
            "<=",
            1e-10,
        )
    ]
    if world.family == "rock-paper-scissors":
        predicted = (1 - tau / eta) ** 2 + (omega / eta) ** 2
        rates = torch.tensor([_tail_factor(kls[:, x]) for x in range(kls.shape[1])])
        worst = float((rates / predicted - 1).abs().max())
        rows.append(
            Row(
                "inpo",
                f"{short}: KL factor per round, off the linearisation's",
                "local",
                worst,
                "<=",
                0.15,
            )
        )
    return rows


def _inpo_unstable(world: Bandits) -> list[Row]:
    """Below the limit it never settles; at tau 0.05 every cyclic bandit has room below it."""
    tau = 0.05
    nash = regularised_nash(world.preference, world.reference, tau)
    eta = 0.6 * float(_critical(tau, rotation(world.preference, nash)).min())
    policy = next(islice(inpo_rounds(world, tau, lambda _: max(eta, 1.05 * tau)), 600, None))
    least = float(kl(nash, policy).min())
    return [
        Row(
            "inpo",
            "RPS: least KL after 600 rounds, eta = 0.6 x the limit",
            "local",
            least,
            ">=",
            1e-4,
        )
    ]


def _inpo_pair_laws(world: Bandits) -> list[Row]:
    """The theorem asks for two samples of `previous`: another law has another fixed point."""
    tau, eta, short = 0.3, 1.0, SHORT[world.family]
    nash = regularised_nash(world.preference, world.reference, tau)

    def fixed_point(law_of: Callable[[Tensor], Tensor]) -> Tensor:
        policy = world.reference
        for _ in range(120):
            run = Population(
                {"name": "inpo", "eta": eta, "tau": tau},
                law_of(policy),
                reference=world.reference,
                previous=policy,
                preference=world.preference,
            )
            policy = run.minimum(policy, steps=1)
        return policy

    own = float(kl(nash, fixed_point(product_law)).max())
    other = float(kl(nash, fixed_point(uniform_law)).mean())
    return [
        Row("inpo", f"{short}: KL of the fixed point, pairs of pi_t", "theorem", own, "<=", 1e-10),
        Row(
            "inpo",
            f"{short}: mean KL of the fixed point, uniform pairs",
            "empirical",
            other,
            ">=",
            1e-4,
        ),
    ]


def _inpo_sampled(world: Bandits, pairs: int) -> list[Row]:
    """Finite samples of pairs and of labels, 40 rounds; soft labels carry less noise."""
    tau, rows = 0.3, []
    nash = regularised_nash(world.preference, world.reference, tau)
    eta = max(4 * float(_critical(tau, rotation(world.preference, nash)).max()), 1.2 * tau)
    for labels in ("hard", "soft"):
        worst = 0.0
        for noise in (500, 501, 502):
            generator = torch.Generator().manual_seed(noise)
            policy = world.reference
            for _ in range(40):
                counts = _drawn(product_law(policy), pairs, generator)
                preference = world.preference
                if labels == "hard":
                    wins = torch.binomial(counts, world.preference, generator=generator)
                    counts, preference = wins + (counts - wins).mT, None
                run = Population(
                    {"name": "inpo", "eta": eta, "tau": tau},
                    counts / pairs,
                    reference=world.reference,
                    previous=policy,
                    preference=preference,
                )
                policy = run.minimum(policy, steps=1)
            worst = max(worst, float(kl(nash, policy).mean()))
        claim = (
            f"{SHORT[world.family]}: {pairs:,} sampled {labels} pairs a round, mean KL, worst of 3"
        )
        rows.append(Row("inpo", claim, "empirical", worst, "<=", 2e-3))
    return rows


def _self_play_gradient(world: Bandits) -> Row:
    """On pairs of the policy itself: -4 (beta + 1/eta) times the policy gradient of the step."""
    beta, eta = 0.1, 1 / 0.7
    policy, anchor = _near(world.reference, 0.5, 21), _near(world.reference, 0.5, 22)
    run = Population(
        {"name": "nash_mp", "beta": beta, "eta": eta},
        product_law(policy),
        reference=world.reference,
        anchor=anchor,
        preference=world.preference,
    )
    gain = (
        win_rate(world.preference, policy)
        - beta * (policy - world.reference)
        - (policy - anchor) / eta
    )
    mean = (policy.exp() * gain).sum(-1, keepdim=True)
    ascent = policy.exp() * (gain - mean)
    error = (run.gradient(policy) + 4 * (beta + 1 / eta) * ascent).abs().max()
    claim = f"{SHORT[world.family]}: pair gradient = -4 (beta + 1/eta) x policy gradient"
    return Row("nash_mp", claim, "theorem", float(error), "<=", 1e-12)


def _contraction(world: Bandits, beta: float, eta: float, rounds: int) -> Row:
    nash = regularised_nash(world.preference, world.reference, beta)
    path = islice(nash_mp_rounds(world, beta, eta), rounds)
    kls = torch.stack([kl(nash, policy) for policy in path])
    measured = kls[1:] > ACCURATE
    worst = float((kls[1:] / kls[:-1])[measured].max()) * (1 + eta * beta)
    claim = f"{SHORT[world.family]}: worst step factor x (1 + eta beta), beta {beta:g}, eta {eta:g}"
    return Row("nash_mp", claim, "theorem", worst, "<=", 1.0)


def _queries(world: Bandits, beta: float) -> list[Row]:
    """Two preference evaluations per round, until KL is 1e-8."""
    nash = regularised_nash(world.preference, world.reference, beta)
    path = islice(nash_mp_rounds(world, beta, 2.0), 200)
    kls = torch.stack([kl(nash, policy) for policy in path])
    rounds = (kls > 1e-8).sum(0)
    bound = torch.ceil(torch.log(kls[0] / 1e-8) / np.log(1 + 2 * beta)).clamp(min=0)
    short = SHORT[world.family]
    return [
        Row(
            "nash_mp",
            f"{short}: queries to KL 1e-8, beta {beta:g}",
            "empirical",
            2.0 * float(rounds.max()),
            "<=",
            130,
        ),
        Row(
            "nash_mp",
            f"{short}: rounds beyond the theorem's count",
            "theorem",
            float((rounds - bound).max()),
            "<=",
            0,
        ),
    ]


def _nash_span(world: Bandits, beta: float) -> Row:
    policy = next(islice(nash_mp_rounds(world, beta, 2.0), 300, None))
    left = regularised_exploitability(world.preference, world.reference, beta, policy).max()
    claim = f"{SHORT[world.family]}: regularised exploitability after 300 rounds"
    return Row("nash_mp", claim, "theorem", float(left), "<=", 1e-10)


def _moving_anchor(world: Bandits) -> Row:
    """Self-play natural gradient, 1/eta = 0.5, against an anchor that follows at rate 0.1."""
    beta, pull, rate = 0.05, 0.5, 0.1
    nash = regularised_nash(world.preference, world.reference, beta)
    policy = anchor = world.reference
    for _ in range(2000):
        run = Population(
            {"name": "nash_mp", "beta": beta, "eta": 1 / pull},
            product_law(policy),
            reference=world.reference,
            anchor=anchor,
            preference=world.preference,
        )
        # The identity of _self_play_gradient, divided by pi: logits move by the gain itself.
        step = run.gradient(policy) / policy.exp() / (4 * (beta + pull))
        policy = normalised(policy - step)
        anchor = normalised((1 - rate) * anchor + rate * policy)
    left = float(kl(nash, policy).max())
    return Row(
        "nash_mp",
        "RPS: KL after 2000 self-play steps, moving anchor, beta 0.05",
        "empirical",
        left,
        "<=",
        1e-8,
    )


def _apo_hedge(world: Bandits) -> Row:
    """The inner sppo, one round: the Hedge step from the extrapolated policy."""
    beta, momentum = 1.0, 0.5
    now, before = _near(world.reference, 0.5, 31), world.reference
    hat = normalised((1 + momentum) * now - momentum * before)
    wins = win_rate(world.preference, hat)
    node = {"name": "apo", "beta": beta, "momentum": momentum, "inner": "sppo"}
    run = Population(node, product_law(hat), previous=now, earlier=before, score=wins)
    error = (run.minimum(now) - normalised(hat + wins / beta)).abs().max()
    return Row(
        "apo",
        "inner sppo = the Hedge step from the extrapolated policy",
        "theorem",
        float(error),
        "<=",
        1e-10,
    )


def _reward_fails(world: Bandits, average: Tensor) -> list[Row]:
    """The best Bradley-Terry reward, as DPO implies it, at any temperature."""
    uniform = torch.zeros_like(world.reference)
    fit = Population(
        {"name": "dpo", "beta": 1.0},
        uniform_law(world.reference),
        reference=normalised(uniform),
        preference=world.preference,
    )
    reward = fit.minimum(world.reference)
    greedy = torch.nn.functional.one_hot(reward.argmax(-1), reward.shape[-1]).to(reward.dtype)
    path = torch.stack(
        [
            exploitability(
                world.preference, kl_regularised_optimum(world.reference, reward, float(beta))
            )
            for beta in np.exp(np.linspace(-8, 8, 400))
        ]
    )
    best = path.amin(0)
    nash = regularised_nash(world.preference, world.reference, 0.02)
    of_nash = exploitability(world.preference, nash)
    of_average = exploitability(world.preference, average.log())
    return [
        Row(
            "spo",
            "RPS: exploitability of the fitted reward's best action, least",
            "empirical",
            float(exploitability(world.preference, greedy.log()).min()),
            ">=",
            0.05,
        ),
        Row(
            "spo",
            "RPS: bandits where all temperatures of that reward lose to Nash (tau 0.02)",
            "empirical",
            float((best > of_nash).double().mean()),
            ">=",
            0.95,
            stated_for=6,
        ),
        Row(
            "spo",
            "RPS: bandits where all temperatures of that reward lose to SPO's average",
            "empirical",
            float((best > of_average).double().mean()),
            ">=",
            0.95,
            stated_for=6,
        ),
    ]


def _accelerated(world: Bandits, beta: float, momentum: float, rounds: int) -> Tensor:
    reach = _s(momentum, rounds) / beta
    return normalised(world.reference + reach * world.known_reward)


def _s(momentum: float, rounds: int) -> float:
    """S_T = sum over s <= T of (1 - momentum^s) / (1 - momentum)."""
    return sum((1 - momentum**s) / (1 - momentum) for s in range(1, rounds + 1))


def _suboptimality(reward: Tensor, policy: Tensor) -> Tensor:
    return reward.amax(-1) - (policy.exp() * reward).sum(-1)


def _worst_start(world: Bandits) -> Tensor:
    best = world.known_reward.argmax(-1, keepdim=True)
    return -world.reference.gather(1, best)[:, 0]


def _schedule(tau: float) -> Callable[[int], float]:
    return lambda t: tau * (t + 2) / 2


def _critical(tau: float, omega: Tensor) -> Tensor:
    """[X]: constant eta must exceed this for the equilibrium to attract."""
    return (tau**2 + omega**2) / (2 * tau)


def _tail_factor(kls: Tensor) -> float:
    """Factor of KL per round where KL is small, not yet rounding; nan if that is short."""
    rounds = torch.nonzero((kls > ACCURATE) & (kls < 1e-4))[:, 0]
    rounds = rounds[len(rounds) // 4 :]
    if len(rounds) < 6:
        return float("nan")
    slope, _ = np.polyfit(rounds.numpy(), kls[rounds].log().numpy(), 1)
    return float(np.exp(slope))


def _near(policy: Tensor, size: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(policy.shape, generator=generator, dtype=policy.dtype)
    return normalised(policy + size * noise)


def _drawn(law: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """[X, A, A] how often each ordered pair was drawn."""
    draws = torch.multinomial(law.flatten(1), pairs, replacement=True, generator=generator)
    counts = torch.zeros_like(law).flatten(1)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=law.dtype))
    return counts.reshape(law.shape)
