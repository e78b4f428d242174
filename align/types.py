"""What the rooms hand to each other as tensors, and the legend of the axes.

Axes, used in every docstring of the library:

    B  pairs (or sequences) of a batch      T  completion tokens, padded to the longest
    S  positions of a padded row            V  vocabulary
    N  completions, of one prompt or of several

Log-probabilities are in nats. This module imports torch and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

X = TypeVar("X")

# Frozen policies beside the one that is trained, by the part they play in an objective; fields of
# `PairInputs` in its order.
ROLES = ("reference", "previous", "earlier", "guide", "anchor")

# Fields of `Logps` that take the whole vocabulary at every completion token; only an objective that
# declares one of them (`vocabulary`) is given it.
OF_VOCABULARY = ("collision", "divergence")

# The pairs that OPA-DPO makes of one question (arXiv:2501.09695): ground truth over response,
# revision over response, and each of the two under its picture over itself under a degraded one.
PAIR_KINDS = ("gt_vs_gen", "rev_vs_gen", "gt_img", "rev_img")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged where it is float64 already."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


@dataclass(frozen=True, eq=False)
class Logps:
    """Log-probs of the completion tokens of B sequences, padded to T tokens.

    Attributes:
        token: [B, T] float, log p(y_t | x, y_<t) in nats; what stands where `mask` is False is
            never read.
        mask: [B, T] bool, True on completion tokens, the end-of-turn token included.
        collision: [B, T] nats, log sum_v p(v | x, y_<t)^2, the log-prob that two draws at that
            place are one token; without gradient. Of the policy alone.
        divergence: [B, T] nats, KL(reference || policy) of the distributions over that place's
            token. Of the policy alone, and with its gradient.
    """

    token: Tensor
    mask: Tensor
    collision: Tensor | None = None
    divergence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.token.shape != self.mask.shape or self.token.dim() != 2:
            raise ValueError(
                f"Logps needs token and mask of one shape [B, T]; got {tuple(self.token.shape)} "
                f"and {tuple(self.mask.shape)}."
            )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"Logps.mask must be bool, not {self.mask.dtype}.")
        for name in OF_VOCABULARY:
            values = getattr(self, name)
            if values is not None and values.shape != self.mask.shape:
                raise ValueError(
                    f"Logps.{name} has shape {tuple(values.shape)}, the tokens have "
                    f"{tuple(self.mask.shape)}."
                )

    def total(self) -> Tensor:
        """[B] nats: the sum over completion tokens, in float32 or wider."""
        # masked_fill and not a product: a masked slot may hold inf or nan, and inf * 0 is nan.
        return at_least_float32(self.token).masked_fill(~self.mask, 0.0).sum(dim=1)

    def average(self) -> Tensor:
        """[B] nats per token."""
        return self.total() / self.lengths()

    def lengths(self) -> Tensor:
        """[B] number of completion tokens."""
        return self.mask.sum(dim=1)

    def detached(self) -> Logps:
        """The same values without gradient."""
        others = {n: v.detach() for n in OF_VOCABULARY if (v := getattr(self, n)) is not None}
        return replace(self, token=self.token.detach(), **others)


@dataclass(frozen=True, eq=False)
class Pair(Generic[X]):
    """One thing per side of a preference pair; the sides may differ in width T."""

    chosen: X
    rejected: X


@dataclass(frozen=True, eq=False)
class PairInputs:
    """Everything an objective may read about B pairs. None means: the recipe did not ask for it.

    Attributes:
        policy: log-probs under the policy that is trained; the only field with gradient.
        reference: pi_ref, the fixed anchor of the KL term.
        previous: pi_t, the policy at the start of this round; it sampled the data.
        earlier: pi_{t-1}, one round before `previous`.
        guide: the frozen model whose token log-ratios weigh TGDPO.
        anchor: the proximal anchor of Nash-MP (frozen or moving average).
        score: [B] each, an annotator's number (reward or win rate) in its own units.
        preference: [B] in [0, 1], P(chosen beats rejected); None means 1.
        token_weight: [B, T] each, weight of every completion token's log-ratio.
        pair_kind: [B] int64, which of PAIR_KINDS a pair is.
        coupling: [B, G], what an objective that looks at its whole optimizer step was given of it
            (`align.objectives.coupled`); None means that these pairs are a whole first step.
    """

    policy: Pair[Logps]
    reference: Pair[Logps] | None = None
    previous: Pair[Logps] | None = None
    earlier: Pair[Logps] | None = None
    guide: Pair[Logps] | None = None
    anchor: Pair[Logps] | None = None
    score: Pair[Tensor] | None = None
    preference: Tensor | None = None
    token_weight: Pair[Tensor] | None = None
    pair_kind: Tensor | None = None
    coupling: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ObjectiveOutput:
    """What an objective returns about B pairs.

    Attributes:
        loss: [B], unreduced, float32 or wider; the trainer owns every mean.
        reward: [B] each, detached: the per-side term whose difference the objective compares.
        metrics: detached tensors [B] by name.
    """

    loss: Tensor
    reward: Pair[Tensor]
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class GroupInputs:
    """Everything an objective may read about N completions, those of one prompt being a group.

    A group is never torn apart: all completions that share a number of `group` in a step are here.

    Attributes:
        policy: [N, T] log-probs under the policy that is trained; the only field with gradient.
        group: [N] int64, equal for the completions of one prompt; the numbers mean nothing else.
        reference: pi_ref, the fixed anchor of the KL term.
        previous: pi_t, the policy at the start of this round; it sampled the data.
        earlier: pi_{t-1}, one round before `previous`.
        guide: a frozen model whose token log-ratios are rewards.
        anchor: a proximal anchor (frozen or moving average).
        score: [N], an annotator's number in its own units.
        label: [N] bool, whether a completion is desirable.
        advantage: [N], how much better a completion is than what was to be expected.
        token_advantage: [N, T], the same of every completion token.
        token_weight: [N, T], weight of every completion token's log-ratio.
        mismatched: [N] nats, log-ratio of policy to reference of another prompt's completion behind
            this prompt; what KTO estimates its KL term from, never with gradient.
        coupling: [N, G], what an objective that looks at its whole optimizer step was given of it
            (`align.objectives.coupled`); None means that these groups are a whole first step.
    """

    policy: Logps
    group: Tensor
    reference: Logps | None = None
    previous: Logps | None = None
    earlier: Logps | None = None
    guide: Logps | None = None
    anchor: Logps | None = None
    score: Tensor | None = None
    label: Tensor | None = None
    advantage: Tensor | None = None
    token_advantage: Tensor | None = None
    token_weight: Tensor | None = None
    mismatched: Tensor | None = None
    coupling: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GroupOutput:
    """What an objective returns about N completions.

    Attributes:
        loss: [N], unreduced, float32 or wider; the trainer takes the mean over all completions of
            the step. A loss of a whole group stands at each of its completions.
        reward: [N], detached: the term by which the objective ranks completions.
        metrics: detached tensors [N] by name.
    """

    loss: Tensor
    reward: Tensor
    metrics: Mapping[str, Tensor]
