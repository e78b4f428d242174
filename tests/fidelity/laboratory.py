"""Bandits whose answers are known, and the library's objectives as exact expectations over them.

Axes as in `solvers`: X bandits, A actions. A policy is a softmax table; each action is a completion
of one token, and a pair is two of them, so B = X A A and T = 1. Nothing is sampled here: every
ordered pair (chosen i, rejected j) is there, weighed by its law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from align.objectives import objective_from
from align.types import Logps, Pair, PairInputs
from tests.fidelity.solvers import normalised

FAMILIES = ("bradley-terry", "rock-paper-scissors")
WRITTEN_WITH = range(10)  # the seeds of the tests; scripts/fidelity.py uses others


@dataclass(frozen=True)
class Row:
    """One line of the table: what was claimed, and what was reached.

    Attributes:
        kind: a theorem; a statement about the neighbourhood of the answer ("local"); or something
            seen on these families only ("empirical").
        sense: the side of `threshold` on which `reached` must lie.
        stated_for: the number of actions that the threshold is known for; None means any. At other
            sizes the figure is printed and nothing is claimed.
    """

    method: str
    claim: str
    kind: Literal["theorem", "local", "empirical"]
    reached: float
    sense: Literal["<=", ">="]
    threshold: float
    stated_for: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it was reached; nan never is."""
        if self.sense == "<=":
            return self.reached <= self.threshold
        return self.reached >= self.threshold


@dataclass(frozen=True, eq=False)
class Bandits:
    """X bandits of one family.

    Attributes:
        reference: [X, A] log-probs, every action above 0.02 / 1.2.
        preference: [X, A, A], P(row beats column).
        reward: [X, A] with preference = sigmoid(r_i - r_j); None where no reward explains it.
    """

    family: str
    reference: Tensor
    preference: Tensor
    reward: Tensor | None

    @property
    def known_reward(self) -> Tensor:
        """The rewards of a Bradley-Terry family."""
        assert self.reward is not None, f"{self.family} has no rewards"
        return self.reward

    @property
    def shape(self) -> tuple[int, int]:
        """(X, A)."""
        return self.reference.shape[0], self.reference.shape[1]


def bandits(family: str, seeds: Sequence[int], actions: int = 6, prompts: int = 4) -> Bandits:
    """`prompts` bandits for each seed, in one batch."""
    build = {"bradley-terry": _bradley_terry, "rock-paper-scissors": _rock_paper_scissors}[family]
    drawn = [build(seed, actions, prompts) for seed in seeds]
    reference = torch.from_numpy(np.concatenate([one[0] for one in drawn]))
    values = torch.from_numpy(np.concatenate([one[1] for one in drawn]))
    if family == "bradley-terry":
        preference = torch.sigmoid(values[:, :, None] - values[:, None, :])
        return Bandits(family, reference, preference, values)
    return Bandits(family, reference, 0.5 + values, None)


def product_law(policy: Tensor) -> Tensor:
    """[X, A, A]: two independent samples of a policy given by its log-probs."""
    return policy.exp()[:, :, None] * policy.exp()[:, None, :]


def uniform_law(like: Tensor) -> Tensor:
    """[X, A, A]: every ordered pair of two different actions equally often."""
    actions = like.shape[-1]
    law = (1 - torch.eye(actions, dtype=like.dtype)) / (actions * (actions - 1))
    return law.expand(like.shape[0], -1, -1)


class Population:
    """The expectation of an objective over all pairs, a function of the policy's logits [X, A]."""

    def __init__(
        self,
        node: Mapping[str, Any],
        law: Tensor,
        *,
        preference: Tensor | None = None,
        score: Tensor | None = None,
        **roles: Tensor,
    ) -> None:
        """Lay out the pairs.

        Args:
            node: the objective, as a recipe names it.
            law: [X, A, A] probability of the row (chosen i, rejected j). It is constant: a trainer
                does not differentiate the sampling either.
            preference: [X, A, A], P(chosen beats rejected) of every row, where it is to be read.
            score: [X, A], a number per action, where it is to be read.
            roles: frozen policies by role, log-probs [X, A].
        """
        self.objective = objective_from(node)
        self.law = law
        self._mask = torch.ones(law.numel(), 1, dtype=torch.bool)
        self._frozen: dict[str, Any] = {role: self._pairs(table) for role, table in roles.items()}
        if preference is not None:
            self._frozen["preference"] = preference.reshape(-1)
        if score is not None:
            self._frozen["score"] = Pair(*(side.reshape(-1) for side in self._sides(score)))

    def inputs(self, policy: Tensor) -> PairInputs:
        """All X A A pairs under a policy given by its log-probs [X, A]."""
        return PairInputs(policy=self._pairs(policy), **self._frozen)

    def loss(self, logits: Tensor) -> Tensor:
        """[X]: the expected loss of every bandit."""
        each = self.objective(self.inputs(normalised(logits))).loss
        return (self.law * each.reshape(self.law.shape)).sum((1, 2))

    def gradient(self, logits: Tensor) -> Tensor:
        """[X, A]: of the loss, in the logits."""
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(self.loss(logits).sum(), logits)[0]

    def derivatives(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[X, A] gradient and [X, A, A] Hessian of the loss, in the logits."""
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(logits).sum(), logits, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, k].sum(), logits, retain_graph=True)[0]
            for k in range(logits.shape[-1])
        ]
        return gradient.detach(), torch.stack(rows, dim=1)

    def minimum(self, start: Tensor, tolerance: float = 1e-14, steps: int = 60) -> Tensor:
        """[X, A] log-probs where the gradient vanishes, by Newton's method with halved steps."""
        logits = start
        for _ in range(steps):
            gradient, hessian = self.derivatives(logits)
            if bool((gradient.abs().amax(-1) < tolerance).all()):
                break
            # A constant added to all logits changes nothing: ones fill that null direction.
            move = torch.linalg.solve(hessian + 1 / logits.shape[-1], gradient)
            logits = logits - self._halved(logits, move) * move
        return normalised(logits)

    def regression_minimum(self, sampler: Tensor, curvature: float) -> Tensor:
        """[X, A] log-probs of the minimum of a least-squares objective, in one step.

        On pairs of two independent samples of mu the Hessian is 2 c (diag mu - mu mu^T) with c the
        `curvature` of one pair's loss, so the Newton step from mu divides the gradient by 2 c mu.

        Args:
            sampler: [X, A] log-probs of mu; `law` must be its product law.
            curvature: what `curvature_of` measures.
        """
        step = self.gradient(sampler) / (2 * curvature * sampler.exp())
        return normalised(sampler - step)

    def _pairs(self, table: Tensor) -> Pair[Logps]:
        chosen, rejected = self._sides(table)
        return Pair(
            Logps(chosen.reshape(-1, 1), self._mask), Logps(rejected.reshape(-1, 1), self._mask)
        )

    def _sides(self, table: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.law.shape
        return table[:, :, None].expand(shape), table[:, None, :].expand(shape)

    def _halved(self, logits: Tensor, move: Tensor) -> Tensor:
        """[X, 1]: the largest of 1, 1/2, 1/4, ... that raises no bandit's loss."""
        scale = torch.ones(logits.shape[0], 1, dtype=logits.dtype)
        start = self.loss(logits)
        for _ in range(40):
            worse = self.loss(logits - scale * move) > start + 1e-12 * (1 + start.abs())
            if not bool(worse.any()):
                break
            scale = torch.where(worse[:, None], scale / 2, scale)
        return scale


def curvature_of(node: Mapping[str, Any]) -> float:
    """Second derivative of one pair's loss in log pi(chosen), for objectives that are quadratic."""
    objective = objective_from(node)
    zero, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    frozen: dict[str, Any] = {
        role: Pair(Logps(zero, mask), Logps(zero, mask))
        for role in objective.needs & {"reference", "previous", "earlier", "anchor"}
    }
    half = torch.full((1,), 0.5, dtype=torch.float64)
    score = Pair(half, half) if "score" in objective.needs else None
    chosen = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    policy = Pair(Logps(chosen, mask), Logps(zero, mask))
    loss = objective(PairInputs(policy=policy, score=score, **frozen)).loss
    (slope,) = torch.autograd.grad(loss.sum(), chosen, create_graph=True)
    return float(torch.autograd.grad(slope.sum(), chosen)[0])


def _bradley_terry(seed: int, actions: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1000 + seed)
    rewards = np.empty((prompts, actions))
    for x in range(prompts):
        r = draw.permutation(np.cumsum(0.15 + 0.5 * draw.random(actions)))
        rewards[x] = r - r.mean()
    return _reference(draw, actions, prompts), rewards


def _rock_paper_scissors(seed: int, actions: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions 0 > 1 > 2 > 0 form a cycle and beat all others; then the actions are relabelled."""
    draw = np.random.default_rng(2000 + seed)
    margins = np.zeros((prompts, actions, actions))
    for margin in margins:
        for i, j in ((0, 1), (1, 2), (2, 0)):
            margin[i, j] = draw.uniform(0.2, 0.45)
        for i in range(3):
            margin[i, 3:] = draw.uniform(0.05, 0.3, actions - 3)
        for i in range(3, actions):
            for j in range(i + 1, actions):
                margin[i, j] = draw.uniform(-0.4, 0.4)
        margin -= margin.T.copy()
    for x in range(prompts):
        order = draw.permutation(actions)
        margins[x] = margins[x][np.ix_(order, order)]
    return _reference(draw, actions, prompts), margins


def _reference(draw: np.random.Generator, actions: int, prompts: int) -> np.ndarray:
    p = np.exp(draw.standard_normal((prompts, actions)))
    p = 0.88 * p / p.sum(-1, keepdims=True) + 0.02
    return np.log(p / p.sum(-1, keepdims=True))
