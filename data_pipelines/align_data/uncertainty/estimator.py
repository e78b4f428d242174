"""The classifier of pairs: a backbone with a head of two labels, "the first is better" and not.

UPO, Wang et al. 2024, arXiv:2409.11212, section "Estimator"; settings of the published program:
LoRA of rank 8 and alpha 16 on all linear layers, the head on the last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data.problems import RowProblem
from align.data.records import content_id
from align.errors import RecipeError
from align.judges.base import Comparison, JudgeFailed
from align.policies.loaded import evaluating
from align.progress import progress
from align.reference import digest, tokenizer_digest, weights_digest
from align_data.uncertainty.dropout import Passes, Thinning, spots_of
from align_data.uncertainty.information import Estimate, Order, estimate_of
from align_data.uncertainty.reading import PairReader
from align_data.uncertainty.settings import Classifier

# Network number of the whole model, nothing left out.
WHOLE = None


class PairEstimator(Protocol):
    """Says how probable it is that the first of two responses is the better one."""

    @property
    def identity(self) -> str:
        """Everything that a reading depends on besides the comparison and the network."""
        ...

    def read(
        self, items: Sequence[Comparison], networks: Sequence[int | None]
    ) -> list[tuple[float, ...] | JudgeFailed]:
        """P(first is better) by each network, or why there is none, per item in their order.

        Args:
            items: what is read, first response first.
            networks: numbers of networks with units left out; None is the whole network.
        """
        ...


class PairClassifier:
    """A sequence classifier with two labels as an estimator; model and random state stay as found.

    Args:
        model: two labels, on its device, perhaps with an adapter of peft.
        tokenizer: of the model.
        settings: of the recipe.
        seed: of the networks with units left out.

    Raises:
        RecipeError: the model has other labels than two, or no place for the asked dropout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Classifier,
        *,
        seed: int,
    ) -> None:
        labels = model.config.num_labels
        if labels != 2:
            raise RecipeError(
                f"The estimator has {labels} outputs and needs 2, one for each response being the "
                "better one: train it with this pipeline, or choose a classifier with num_labels 2."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.pad_id = padding_id(tokenizer)
        # The head reads the last token that is not padding.
        model.config.get_text_config().pad_token_id = self.pad_id
        self.reader = PairReader(
            tokenizer, settings.template, min(settings.max_length, positions(model))
        )
        spots = spots_of(model, settings.dropout_in, settings.dropout_blocks)
        self._passes = Passes(model, Thinning(spots, settings.dropout, seed))
        reads = settings.model_dump(
            include={"dropout", "dropout_in", "dropout_blocks", "template", "max_length"}
        )
        parts = [weights_digest(model), tokenizer_digest(tokenizer), content_id(reads, seed)]
        self.identity = f"pair-classifier:{digest(parts)[:16]}"

    def read(
        self, items: Sequence[Comparison], networks: Sequence[int | None]
    ) -> list[tuple[float, ...] | JudgeFailed]:
        """P(first is better) by each network, or why there is none, per item in their order."""
        results: list[tuple[float, ...] | JudgeFailed] = [
            JudgeFailed("not_asked", "the estimator did not read it") for _ in items
        ]
        rows: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            try:
                rows[place] = self.reader.ids(item)
            except RowProblem as problem:
                detail = f"{problem.field}: {problem.detail}"
                results[place] = JudgeFailed(problem.reason, detail)
        order = sorted(rows, key=lambda place: (len(rows[place]), place))
        size = self.settings.batch_rows
        with evaluating(self.model), progress("estimate", len(order)) as advance:
            for start in range(0, len(order), size):
                places = order[start : start + size]
                found = self._forward([rows[place] for place in places], networks)
                for place, passes in zip(places, found.T.tolist(), strict=True):
                    results[place] = (
                        tuple(passes)
                        if all(map(math.isfinite, passes))
                        else JudgeFailed("not_finite", "the estimator's output is no number")
                    )
                read = sum(len(rows[place]) for place in places)
                advance(len(places), tokens=read * len(networks))
        return results

    def _forward(self, rows: list[list[int]], networks: Sequence[int | None]) -> Tensor:
        """[T, R] float64, P(first is better)."""
        ids, mask = padded(rows, self.pad_id)
        return torch.stack(
            [
                output.logits.double().softmax(dim=1)[:, 0].cpu()
                for output in self._passes.outputs(ids, mask, networks)
            ]
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with on the right: any but the one that ends a text, which the head must find.

    Attention is causal or masked, so what stands there is never read.
    """
    end = tokenizer.eos_token_id
    own = tokenizer.pad_token_id
    if isinstance(own, int) and own != end:
        return own
    return next(i for i in range(2) if i != end)


def positions(model: PreTrainedModel) -> int:
    """Tokens that the model can read at once."""
    config: Any = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """[R, S] ids and mask, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def estimates(
    estimator: PairEstimator,
    items: Sequence[Comparison],
    *,
    networks: Sequence[int | None],
    order: Order,
) -> list[Estimate | JudgeFailed]:
    """What the estimator says about pairs whose first response is the one the reward prefers.

    With `order` "both", p and 1 - p change places when the responses do: a habit of position
    cancels.
    """
    asked = list(items)
    if order == "both":
        asked += [Comparison(i.prompt, i.second, i.first, f"{i.id}/swapped") for i in items]
    found = estimator.read(asked, networks)
    results: list[Estimate | JudgeFailed] = []
    for place in range(len(items)):
        straight = found[place]
        swapped = found[place + len(items)] if order == "both" else None
        if isinstance(straight, JudgeFailed):
            results.append(straight)
        elif isinstance(swapped, JudgeFailed):
            results.append(swapped)
        else:
            results.append(estimate_of(straight, swapped))
    return results
