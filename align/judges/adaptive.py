"""Weights of several rewards that follow their spread from round to round.

    score(y) = sum over k of w_k / s_k r_k(y)
    s_k^2    = decay s_k^2 of the round before + (1 - decay) v_k,    v_k alone in the first round

v_k is the variance of reward k among the completions of one prompt, in the mean over the round's
prompts. So a reward in large units, or one that varies more, does not drown the others, and
`weight` says how much each counts in standard deviations. A reward that has never varied within a
prompt keeps the weight that was written: it moves no order.

Source: Ichihara et al. 2025, "MO-GRPO: Mitigating Reward Hacking of Group Relative Policy
Optimization on Multi-Objective Problems" (arXiv:2509.22047), which divides each reward by its
standard deviation within each group. Differs from the paper: one deviation for all prompts of a
round, so that scores of different prompts keep one unit, and a running one; decay 0 takes the
round's own.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance
from typing import Any, Literal

from pydantic import Field

from align.data.messages import prompt_id
from align.judges.base import Answer, JudgeFailed, ScoreJudge
from align.node import Node
from align.reference import digest


class Adapt(Node):
    """Weights are divided by the rewards' spread among the completions of a prompt."""

    name: Literal["spread"]
    """The rule: spread."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """Of the rewards' variances from round to round; 0 takes each round's own."""


class AdaptiveJudge:
    """Adds scores up with weights of its own round.

    Args:
        judges: that score.
        labels: one per judge, for reports.
        weights: one per judge, as written.
        adapt: the rule.
        state: what the round before left in `state`; empty in the first.
    """

    def __init__(
        self,
        judges: Sequence[ScoreJudge],
        labels: Sequence[str],
        weights: Sequence[float],
        adapt: Adapt,
        state: Mapping[str, Any],
    ) -> None:
        self._judges = judges
        self._labels = [f"{place}_{label}" for place, label in enumerate(labels, start=1)]
        self._written = weights
        self._adapt = adapt
        self._before: list[float | None] = state.get("variances", [None] * len(judges))
        self.variances: Sequence[float | None] = self._before
        parts = [f"{w!r} {j.identity}" for w, j in zip(weights, judges, strict=True)]
        parts += [repr(adapt.decay), json.dumps(self._before)]
        self.identity = f"rewards:{digest(parts)[:16]}"

    @property
    def state(self) -> dict[str, Any]:
        """What the next round is given."""
        return {"variances": list(self.variances)}

    @property
    def weights(self) -> list[float]:
        """What scores are multiplied by, now."""
        return [
            weight / math.sqrt(variance) if variance else weight
            for weight, variance in zip(self._written, self.variances, strict=True)
        ]

    def told(self) -> dict[str, float]:
        """The weights, for the ledger."""
        named = zip(self._labels, self.weights, strict=True)
        return {f"weight_{label}": weight for label, weight in named}

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """The sum per item; the first failure where one of the judges has none.

        Args:
            items: all of a round, whose spread is part of the weights.
        """
        columns = [judge.score(items) for judge in self._judges]
        prompts = [prompt_id(item.prompt) for item in items]
        self.variances = [
            self._followed(before, variance_within(prompts, column))
            for before, column in zip(self._before, columns, strict=True)
        ]
        weights = self.weights
        return [_sum(weights, scores) for scores in zip(*columns, strict=True)]

    def _followed(self, before: float | None, now: float | None) -> float | None:
        if before is None or now is None:
            return before if now is None else now
        return self._adapt.decay * before + (1 - self._adapt.decay) * now


def variance_within(prompts: Sequence[str], scores: Sequence[float | JudgeFailed]) -> float | None:
    """Variance among the completions of a prompt, in the mean over prompts.

    Returns:
        None where no prompt has two scores.
    """
    of_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, score in zip(prompts, scores, strict=True):
        if not isinstance(score, JudgeFailed):
            of_prompt[prompt].append(score)
    found = [pvariance(of) for of in of_prompt.values() if len(of) > 1]
    return fmean(found) if found else None


def _sum(weights: Sequence[float], scores: Sequence[float | JudgeFailed]) -> float | JudgeFailed:
    total = 0.0
    for weight, score in zip(weights, scores, strict=True):
        if isinstance(score, JudgeFailed):
            return score
        total += weight * score
    return total
