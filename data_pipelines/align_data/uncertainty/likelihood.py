"""The likelier response is the better one: an estimator that needs no training but one number.

    P(first is better) = sigmoid(scale (log pi(first | x) - log pi(second | x)))

with log-probs summed over the tokens, the end token included. The scale is fitted by maximum
likelihood on labelled pairs. Position cannot matter, and a response is read once for all its pairs.

Differs from the paper (arXiv:2409.11212), whose estimator is a trained classifier
(`estimator.PairClassifier`): a model of a million weights does not learn to compare two additions
from some thousand pairs, but it knows which digits it would have written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data.messages import Text
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.records import content_id
from align.errors import DataError
from align.forest.rows import TokenRow
from align.judges.base import Comparison, JudgeFailed
from align.policies.loaded import evaluating
from align.policies.prompting import Prompting
from align.progress import progress
from align.reference import digest, tokenizer_digest, weights_digest
from align_data.uncertainty.dropout import Passes, Thinning, spots_of
from align_data.uncertainty.estimator import WHOLE, padded, positions
from align_data.uncertainty.fitting import Fit, comparison_of, measured, split
from align_data.uncertainty.settings import Likelihood

Asked = tuple[Text, str]


class LikelihoodEstimator:
    """Compares log-probs of a causal language model; the model stays as it was found.

    Args:
        model: on its device.
        tokenizer: of the model.
        settings: of the recipe.
        scale: per nat.
        seed: of the networks with units left out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Likelihood,
        *,
        scale: float,
        seed: int,
    ) -> None:
        self.model = model
        self.settings = settings
        self.scale = scale
        self._prompting = Prompting(tokenizer)
        self._longest = min(settings.max_length, positions(model))
        spots = spots_of(model, settings.dropout_in, settings.dropout_blocks)
        self._passes = Passes(model, Thinning(spots, settings.dropout, seed))
        reads = settings.model_dump(
            include={"dropout", "dropout_in", "dropout_blocks", "max_length"}
        )
        parts = [weights_digest(model), tokenizer_digest(tokenizer), content_id(reads, seed, scale)]
        self.identity = f"likelihood:{digest(parts)[:16]}"

    def read(
        self, items: Sequence[Comparison], networks: Sequence[int | None]
    ) -> list[tuple[float, ...] | JudgeFailed]:
        """P(first is better) by each network, or why there is none, per item in their order."""
        gaps = self.gaps(items, networks)
        return [
            gap if isinstance(gap, JudgeFailed) else tuple(_sigmoid(self.scale * g) for g in gap)
            for gap in gaps
        ]

    def gaps(
        self, items: Sequence[Comparison], networks: Sequence[int | None]
    ) -> list[tuple[float, ...] | JudgeFailed]:
        """log pi(first) - log pi(second) [nats] by each network, before the scale."""
        asked = {(i.prompt, text): None for i in items for text in (i.first, i.second)}
        known = self._totals(list(asked), networks)
        results: list[tuple[float, ...] | JudgeFailed] = []
        for item in items:
            first, second = known[item.prompt, item.first], known[item.prompt, item.second]
            if isinstance(first, JudgeFailed) or isinstance(second, JudgeFailed):
                results.append(first if isinstance(first, JudgeFailed) else second)
            else:
                results.append(tuple(a - b for a, b in zip(first, second, strict=True)))
        return results

    def _totals(
        self, asked: Sequence[Asked], networks: Sequence[int | None]
    ) -> dict[Asked, tuple[float, ...] | JudgeFailed]:
        found: dict[Asked, tuple[float, ...] | JudgeFailed] = {}
        rows: dict[Asked, TokenRow] = {}
        for one in asked:
            try:
                row = self._prompting.row(*one)
                if len(row) > self._longest:
                    detail = f"{len(row)} tokens, {self._longest} fit"
                    raise RowProblem("too_long", "response", detail)
                rows[one] = row
            except RowProblem as problem:
                found[one] = JudgeFailed(problem.reason, f"{problem.field}: {problem.detail}")
        order = sorted(rows, key=lambda one: len(rows[one]))
        size = self.settings.batch_rows
        with evaluating(self.model), progress("score", len(order)) as advance:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                totals = self._forward([rows[one] for one in batch], networks)
                for one, passes in zip(batch, totals.T.tolist(), strict=True):
                    found[one] = (
                        tuple(passes)
                        if all(map(math.isfinite, passes))
                        else JudgeFailed("not_finite", "the estimator's output is no number")
                    )
                advance(len(batch), tokens=sum(len(rows[one]) for one in batch) * len(networks))
        return found

    def _forward(self, rows: Sequence[TokenRow], networks: Sequence[int | None]) -> Tensor:
        """[T, R] float64, log-prob [nats] of each completion."""
        # What stands in the padding is never scored, so its id does not matter.
        ids, mask = padded([[*row.prompt_ids, *row.completion_ids] for row in rows], 0)
        counted = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool)
        for r, row in enumerate(rows):
            counted[r, row.first_scored - 1 : len(row) - 1] = True
        totals: list[Tensor] = []
        for output in self._passes.outputs(ids, mask, networks):
            logps = output.logits[:, :-1].float().log_softmax(dim=2)
            token = logps.gather(2, ids[:, 1:, None].to(logps.device)).squeeze(2).cpu().double()
            totals.append(torch.where(counted, token, 0.0).sum(dim=1))
        return torch.stack(totals)


def fit_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    settings: Likelihood,
) -> tuple[float, Fit]:
    """The scale by maximum likelihood, and what it gives on the held-out pairs.

    Raises:
        DataError: no pair can be read.
    """
    training, held_out = split(pairs, settings)
    raw = LikelihoodEstimator(model, tokenizer, settings, scale=1.0, seed=settings.seed)
    found = raw.gaps([comparison_of(pair) for pair in training], [WHOLE])
    dropped = Counter(gap.reason for gap in found if isinstance(gap, JudgeFailed))
    gaps: list[float] = []
    wins: list[float] = []
    for pair, gap in zip(training, found, strict=True):
        if not isinstance(gap, JudgeFailed):
            gaps.append(gap[0])
            wins.append(1.0 if pair.preference is None else pair.preference)
    if not gaps:
        raise DataError(
            f"None of the {len(training)} labelled pairs can be read by the estimator: raise "
            "estimator.max_length, or give other pairs."
        )
    scale, loss = fitted_scale(gaps, wins)
    estimator = LikelihoodEstimator(model, tokenizer, settings, scale=scale, seed=settings.seed)
    fit = measured(
        estimator,
        held_out,
        pairs=len(gaps),
        dropped=dropped,
        steps=0,
        first_loss=math.log(2),
        last_loss=loss,
    )
    return scale, fit


def fitted_scale(gaps: Sequence[float], wins: Sequence[float]) -> tuple[float, float]:
    """The scale [1/nat] that makes the labels likeliest, and the mean loss [nats] with it.

    Labels are drawn in by 1 / (N + 2) (Platt 1999, "Probabilistic outputs for support vector
    machines", section 2.2): without that, pairs that are all told apart ask for an infinite scale.
    """
    n = len(gaps)
    soft = [(win * n + 1.0) / (n + 2.0) for win in wins]

    def slope(scale: float) -> float:
        return math.fsum(g * (p - _sigmoid(scale * g)) for g, p in zip(gaps, soft, strict=True))

    low, high = -1e3, 1e3
    # The log-likelihood is concave: its slope falls.
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    scale = (low + high) / 2
    margins = [scale * g for g in gaps]
    losses = [
        p * _softplus(-m) + (1.0 - p) * _softplus(m) for m, p in zip(margins, wins, strict=True)
    ]
    return scale, math.fsum(losses) / n


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
