"""The same claims where sequence log-probs, not table entries, carry the gradient.

A GRU language model over six tokens and an end-of-turn token writes completions of at most three
tokens: 259 of them, so every policy can be written down in full and compared with exact answers,
while training sees what a trainer sees: sampled pairs of ragged length, token by token, and Adam.

Axes: X prompts, N = 259 completions, T = 3 tokens, B sampled pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align.objectives import objective_from
from align.types import Logps, Pair, PairInputs
from tests.fidelity.laboratory import Row
from tests.fidelity.solvers import (
    exploitability,
    kl,
    kl_regularised_optimum,
    normalised,
    regularised_exploitability,
    regularised_nash,
    win_rate,
)

VOCABULARY, END, LONGEST, PROMPTS, HIDDEN = 6, 6, 3, 2, 32
PAIRS = 512  # of one optimiser step, for each prompt

COMPLETIONS = [
    words for length in range(LONGEST + 1) for words in product(range(VOCABULARY), repeat=length)
]
_PREFIXES = [words for words in COMPLETIONS if len(words) < LONGEST]
_NODE = {words: index for index, words in enumerate(_PREFIXES)}
_PARENTS = torch.tensor([_NODE[words[:-1]] for words in _PREFIXES[1:]])
_LAST = torch.tensor([words[-1] for words in _PREFIXES[1:]])


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([[*row, *[0] * (LONGEST - len(row))] for row in rows])


# Completions of full length end by themselves; shorter ones carry the end-of-turn token.
_SPELLED = [(*words, END)[:LONGEST] for words in COMPLETIONS]
TOKENS = _padded(_SPELLED)
MASK = torch.tensor([[t < len(words) for t in range(LONGEST)] for words in _SPELLED])
NODES = _padded([[_NODE[words[:t]] for t in range(len(words))] for words in _SPELLED])


class TinyLanguageModel(nn.Module):
    """GRU over the tree of prefixes; the prompt is its first hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Embedding(PROMPTS, HIDDEN)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY + 1)
        self.double()

    def token_logps(self) -> Tensor:
        """[X, N, T] nats of every token of every completion; 0 where there is none."""
        # Prefixes stand in order of length, so a level's parents are there before it.
        hidden = [self.prompt.weight[:, None]]
        first = 0
        for length in range(1, LONGEST):
            count = VOCABULARY**length
            parents, last = _PARENTS[first : first + count], _LAST[first : first + count]
            above = torch.cat(hidden, 1)[:, parents]
            words = self.embedding(last).expand(PROMPTS, -1, -1)
            state = self.cell(words.flatten(0, 1), above.flatten(0, 1))
            hidden.append(state.unflatten(0, (PROMPTS, count)))
            first += count
        logps = torch.log_softmax(self.head(torch.cat(hidden, 1)), -1)
        return logps[:, NODES, TOKENS].masked_fill(~MASK, 0.0)

    @torch.no_grad()
    def policy(self) -> Tensor:
        """[X, N] nats: the log-prob of every completion; each row sums to one."""
        return self.token_logps().sum(-1)


@dataclass(frozen=True, eq=False)
class Language:
    """A reference model, and two sets of preferences over its completions.

    Attributes:
        reward: [X, N], sums of values of tokens in place and of neighbours.
        preference: [X, N, N], what that reward says by Bradley-Terry.
        cyclic: [X, N, N]: the sum of the tokens modulo 3 decides as rock beats scissors, and the
            reward only within that.
    """

    reference: TinyLanguageModel
    reward: Tensor
    preference: Tensor
    cyclic: Tensor


def language(seed: int) -> Language:
    """A random reference, reward and cycle."""
    draw = np.random.default_rng(3000 + seed)
    reward = np.zeros((PROMPTS, len(COMPLETIONS)))
    cyclic = np.full((PROMPTS, len(COMPLETIONS), len(COMPLETIONS)), 0.5)
    group = np.array([sum(words) % 3 for words in COMPLETIONS])
    for x in range(PROMPTS):
        place = draw.standard_normal((LONGEST, VOCABULARY))
        after = 0.5 * draw.standard_normal((VOCABULARY, VOCABULARY))
        for n, words in enumerate(COMPLETIONS):
            reward[x, n] = sum(place[t, word] for t, word in enumerate(words))
            reward[x, n] += sum(after[a, b] for a, b in pairwise(words))
        reward[x] = (reward[x] - reward[x].mean()) / reward[x].std()
        beats = np.zeros((3, 3))
        for i, j in ((0, 1), (1, 2), (2, 0)):
            beats[i, j] = draw.uniform(0.2, 0.35)
        beats -= beats.T.copy()
        cyclic[x] += beats[group][:, group]
        cyclic[x] += 0.05 * np.tanh(reward[x][:, None] - reward[x][None, :])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = TinyLanguageModel()
        # A habit, so that no policy near the reference is a fair mixture of the three groups.
        reference.head.bias.data[[0, 3]] = 2.0
    r = torch.from_numpy(reward)
    return Language(
        reference, r, torch.sigmoid(r[:, :, None] - r[:, None, :]), torch.from_numpy(cyclic)
    )


def train(
    model: TinyLanguageModel,
    node: Mapping[str, Any],
    sampler: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    rate: float,
    preference: Tensor | None = None,
    score: Tensor | None = None,
    **roles: Tensor,
) -> None:
    """Adam on freshly sampled pairs, the rate falling to 0 along a cosine.

    Args:
        model: trained in place.
        node: the objective.
        sampler: [X, N] log-probs; both sides of a pair are independent samples of it.
        generator: of the pairs.
        steps: optimiser steps.
        rate: Adam's first learning rate.
        preference: [X, N, N], where the objective reads it.
        score: [X, N], where it does.
        roles: [X, N, T] token log-probs of the frozen policies.
    """
    objective = objective_from(node)
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    prompt = torch.arange(PROMPTS).repeat_interleave(PAIRS)
    for _ in range(steps):
        drawn = [
            torch.multinomial(sampler.exp(), PAIRS, replacement=True, generator=generator)
            for _ in range(2)
        ]
        i, j = (side.flatten() for side in drawn)

        def pairs(table: Tensor, i: Tensor = i, j: Tensor = j) -> Pair[Logps]:
            return Pair(Logps(table[prompt, i], MASK[i]), Logps(table[prompt, j], MASK[j]))

        frozen: dict[str, Any] = {role: pairs(table) for role, table in roles.items()}
        inputs = PairInputs(
            policy=pairs(model.token_logps()),
            preference=None if preference is None else preference[prompt, i, j],
            score=None if score is None else Pair(score[prompt, i], score[prompt, j]),
            **frozen,
        )
        adam.zero_grad()
        objective(inputs).loss.mean().backward()
        adam.step()
        decay.step()


def sequences(seeds: Sequence[int]) -> list[Row]:
    """DPO's optimum, INPO's equilibrium and SPO against a reward, at sequence level."""
    worst: dict[tuple[str, str, float], float] = {}
    for seed in seeds:
        for claim in (*_dpo(seed), *_inpo(seed), *_spo(seed)):
            key, reached = claim[:3], claim[3]
            worst[key] = max(reached, worst.get(key, -np.inf))
    return [
        Row(method, f"259 sequences, GRU: {claim}", "empirical", reached, "<=", threshold)
        for (method, claim, threshold), reached in worst.items()
    ]


def _dpo(seed: int) -> list[tuple[str, str, float, float]]:
    world, beta = language(seed), 0.5
    model, start = copy.deepcopy(world.reference), world.reference.policy()
    optimum = kl_regularised_optimum(start, world.reward, beta)
    train(
        model,
        {"name": "dpo", "beta": beta},
        normalised(torch.zeros_like(start)),
        torch.Generator().manual_seed(seed),
        steps=500,
        rate=0.01,
        preference=world.preference,
        reference=world.reference.token_logps().detach(),
    )
    left = kl(optimum, model.policy()) / kl(optimum, start)
    return [
        ("dpo", "KL from pi_ref exp(r/beta) / Z, share of the start's", 0.02, float(left.max()))
    ]


def _inpo(seed: int) -> list[tuple[str, str, float, float]]:
    world, tau, eta = language(seed), 0.1, 0.4
    model, start = copy.deepcopy(world.reference), world.reference.policy()
    reference = world.reference.token_logps().detach()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(12):
        train(
            model,
            {"name": "inpo", "eta": eta, "tau": tau},
            model.policy(),
            generator,
            steps=60,
            rate=0.005,
            preference=world.cyclic,
            reference=reference,
            previous=model.token_logps().detach(),
        )
    gap = [
        regularised_exploitability(world.cyclic, start, tau, policy)
        for policy in (model.policy(), start)
    ]
    nash = regularised_nash(world.cyclic, start, tau)
    far = kl(nash, model.policy())
    return [
        (
            "inpo",
            "regularised exploitability, share of the start's",
            0.1,
            float((gap[0] / gap[1]).max()),
        ),
        ("inpo", "KL from the regularised Nash", 0.05, float(far.max())),
    ]


def _spo(seed: int) -> list[tuple[str, str, float, float]]:
    world, rounds = language(seed), 200
    model, start = copy.deepcopy(world.reference), world.reference.policy()
    generator = torch.Generator().manual_seed(seed)
    average = torch.zeros_like(start)
    for _ in range(rounds):
        policy = model.policy()
        average += policy.exp() / rounds
        train(
            model,
            {"name": "spo", "eta": 2.0},
            policy,
            generator,
            steps=8,
            rate=0.005,
            score=win_rate(world.cyclic, policy),
            previous=model.token_logps().detach(),
        )
    fitted = copy.deepcopy(world.reference)
    train(
        fitted,
        {"name": "dpo", "beta": 1.0},
        start,
        generator,
        steps=300,
        rate=0.01,
        preference=world.cyclic,
        reference=world.reference.token_logps().detach(),
    )
    reward = fitted.policy() - start
    by_reward = torch.stack(
        [
            exploitability(world.cyclic, kl_regularised_optimum(start, reward, float(beta)))
            for beta in np.exp(np.linspace(-6, 4, 60))
        ]
    ).amin(0)
    own = exploitability(world.cyclic, average.log())
    return [
        ("spo", "exploitability of the average", 0.08, float(own.max())),
        (
            "spo",
            "the same, share of DPO's reward at its best temperature",
            0.9,
            float((own / by_reward).max()),
        ),
    ]
