"""What is measured of reward models, preference models and imitating policies, on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from align.calibration import calibration_error, reliability
from align.estimates import Estimate, mean, proportion, ratio
from align.forest import forest_logps
from align.policies.classifiers import scores_of
from align.policies.loaded import evaluating
from align.progress import progress
from align.tokens.tokenized_pair import TokenizedPair
from align.trainers.preference_model import cross_entropy

Measured = tuple[dict[str, Any], list[dict[str, Any]]]
"""`<kind>/<metric>` -> value, low, high, n; and the reliability table."""


def measured_classifier(
    kind: str, model: Any, rows: Dataset | None, *, pad: int, batch_size: int
) -> Measured:
    """How well a classifier tells the chosen answers of held-out pairs, and how well it knows it.

    Args:
        kind: reward or preference_model; names the metrics.
        model: on its device.
        rows: as its trainer takes them; None where none are held out.
        pad: its padding token.
        batch_size: pairs of one forward pass.
    """
    if rows is None or not len(rows):
        return {}, []
    sides: Any = [*rows["chosen_ids"], *rows["rejected_ids"]]
    scores = torch.tensor(
        scores_of(model, sides, pad=pad, batch_size=2 * batch_size, title=f"measure {kind}"),
        dtype=torch.float64,
    )
    chosen, rejected = scores.chunk(2)
    labels: Any = rows["preference"] if "preference" in rows.column_names else [1.0] * len(rows)
    found, table = agreement(chosen - rejected, torch.tensor(list(labels), dtype=torch.float64))
    return {f"{kind}/{name}": one.to_json() for name, one in found.items()}, table


def agreement(
    difference: Tensor, label: Tensor
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """What log odds say about labelled pairs, and the reliability table.

    Args:
        difference: log odds that the chosen answer is better, [N] nats.
        label: P(chosen beats rejected) as annotated, [N] in [0, 1].

    Returns:
        accuracy (share of pairs whose winner has the higher score; a tie of scores is no hit, a
        label of 1/2 no pair), margin (mean log odds of the chosen answer, nats), log_loss (mean
        cross entropy, nats), calibration_error (a fraction; without an interval).

    Raises:
        NumericalError: a score is NaN or infinite.
    """
    margin = mean(difference, what="margin")
    decided = label != 0.5
    hits = (difference > 0) == (label > 0.5)
    hits &= difference != 0
    table = reliability(difference, label)
    found = {
        "accuracy": proportion(int(hits[decided].sum()), int(decided.sum())),
        "margin": margin,
        "log_loss": mean(cross_entropy(difference, label), what="log loss"),
        "calibration_error": Estimate(calibration_error(table), None, None, len(difference)),
    }
    return found, [one.to_json() for one in table]


def measured_imitation(
    model: Any, rows: Sequence[TokenizedPair], *, batch_size: int
) -> dict[str, Any]:
    """How likely a policy finds held-out completions: nats per token, and perplexity.

    Args:
        model: a causal language model on its device.
        rows: whose chosen sides are the completions.
        batch_size: rows of one forward pass.
    """
    if not rows:
        return {}
    nats: list[float] = []
    tokens: list[int] = []
    order = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.chosen_ids))
    with evaluating(model), progress("measure sft", len(order)) as advance:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            logps = forest_logps(model, [(row.prompt_ids, row.chosen_ids) for row in part])
            nats += (-logps.total()).tolist()
            tokens += logps.lengths().tolist()
            advance(
                len(part), tokens=sum(len(row.prompt_ids) + len(row.chosen_ids) for row in part)
            )
    found = ratio(torch.tensor(nats), torch.tensor(tokens), what="log-prob of the completions")
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    assert found.value is not None
    perplexity = Estimate(math.exp(found.value), low, high, found.n)
    return {"sft/nll_per_token": found.to_json(), "sft/perplexity": perplexity.to_json()}
