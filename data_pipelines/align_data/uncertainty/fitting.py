"""Training the estimator on labelled pairs, each read in both orders.

UPO, arXiv:2409.11212: cross-entropy of two labels, 0 where the first response is the better one;
linear decay after a warm-up, as in the published program. Both orders of a pair stand in one step,
so that a habit of position is contradicted at once.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data.messages import Text, prompt_id
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.errors import DataError, NumericalError
from align.judges.base import Comparison
from align.progress import progress
from align_data.uncertainty.dropout import Thinning, spots_of
from align_data.uncertainty.estimator import (
    WHOLE,
    PairClassifier,
    PairEstimator,
    estimates,
    padded,
    padding_id,
    positions,
)
from align_data.uncertainty.information import Estimate
from align_data.uncertainty.reading import PairReader
from align_data.uncertainty.select import uniform
from align_data.uncertainty.settings import AnyEstimator, Classifier

# Steps over which the first and the last loss are averaged.
WINDOW = 20


@dataclass(frozen=True)
class Fit:
    """What training gave.

    Attributes:
        pairs: labelled pairs that were trained on, each in both orders.
        held_out: pairs that were measured on.
        dropped: labelled pairs that cannot be read, by reason.
        steps: optimizer steps.
        first_loss: [nats] mean over the first steps.
        last_loss: [nats] mean over the last steps.
        accuracy: share of the held-out pairs whose chosen wins, both orders averaged; None without
            any.
        first_wins: share of the held-out pairs in which the response read first wins, chosen first.
        first_wins_swapped: the same with rejected first. Near 1 - first_wins where position does
            not matter; both near 1, or both near 0, say that nothing but position was learnt.
    """

    pairs: int
    held_out: int
    dropped: dict[str, int]
    steps: int
    first_loss: float
    last_loss: float
    accuracy: float | None
    first_wins: float | None
    first_wins_swapped: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for a log."""
        lost = ", ".join(f"{reason} {n}" for reason, n in sorted(self.dropped.items()))
        right = "not measured" if self.accuracy is None else f"{self.accuracy:.1%}"
        return (
            f"The estimator learnt from {self.pairs} pairs in {self.steps} steps (dropped: "
            f"{lost or 'none'}): loss {self.first_loss:.3f} -> {self.last_loss:.3f} nats, "
            f"accuracy on {self.held_out} held-out pairs {right}."
        )


@dataclass(frozen=True)
class _Labelled:
    """A pair in both orders.

    Attributes:
        straight: ids, chosen first.
        swapped: ids, rejected first.
        preference: P(chosen is better).
    """

    straight: list[int]
    swapped: list[int]
    preference: float


def comparison_of(pair: PreferencePair) -> Comparison:
    """The pair as it is read, chosen first."""
    return Comparison(pair.prompt, response_of(pair.chosen), response_of(pair.rejected), pair.id)


def response_of(completion: Text) -> str:
    """A completion as one text."""
    return completion if isinstance(completion, str) else completion[0].content


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    settings: Classifier,
    *,
    check: Callable[[], None] = lambda: None,
) -> Fit:
    """Trains `model` in place; it is left in evaluation mode, random state as it was.

    Args:
        model: two labels, on its device; parameters that ask for no gradient stay.
        tokenizer: of the model.
        pairs: labelled; a pair with a `preference` is a soft label.
        settings: of the recipe.
        check: called before every step; raises where the process is to end.

    Raises:
        DataError: no pair can be read.
        NumericalError: the loss is no number.
    """
    training, held_out = split(pairs, settings)
    pad_id = padding_id(tokenizer)
    model.config.get_text_config().pad_token_id = pad_id
    reader = PairReader(tokenizer, settings.template, min(settings.max_length, positions(model)))
    dropped: Counter[str] = Counter()
    rows = [row for pair in training if (row := _read(pair, reader, dropped)) is not None]
    if not rows:
        raise DataError(
            f"None of the {len(training)} labelled pairs can be read by the estimator "
            f"({', '.join(f'{n} {reason}' for reason, n in dropped.most_common()) or 'no pair'}): "
            "raise estimator.max_length, shorten estimator.template, or give other pairs."
        )
    rate = settings.dropout if settings.train_dropout is None else settings.train_dropout
    spots = spots_of(model, settings.dropout_in, settings.dropout_blocks)
    losses = _descend(model, rows, settings, Thinning(spots, rate, settings.seed), pad_id, check)
    model.eval()
    return measured(
        PairClassifier(model, tokenizer, settings, seed=settings.seed),
        held_out,
        pairs=len(rows),
        dropped=dropped,
        steps=len(losses),
        first_loss=math.fsum(losses[:WINDOW]) / len(losses[:WINDOW]),
        last_loss=math.fsum(losses[-WINDOW:]) / len(losses[-WINDOW:]),
    )


def measured(
    estimator: PairEstimator,
    held_out: Sequence[PreferencePair],
    *,
    pairs: int,
    dropped: Counter[str],
    steps: int,
    first_loss: float,
    last_loss: float,
) -> Fit:
    """What training gave, with what the whole network makes of the held-out pairs."""
    items = [comparison_of(pair) for pair in held_out]
    answers = estimates(estimator, items, networks=[WHOLE], order="both")
    found = [answer for answer in answers if isinstance(answer, Estimate)]
    n = len(found)
    return Fit(
        pairs=pairs,
        held_out=n,
        dropped=dict(sorted(dropped.items())),
        steps=steps,
        first_loss=first_loss,
        last_loss=last_loss,
        accuracy=sum(e.agrees for e in found) / n if n else None,
        first_wins=sum(e.straight for e in found) / n if n else None,
        first_wins_swapped=sum(e.swapped or 0 for e in found) / n if n else None,
    )


def split(
    pairs: Sequence[PreferencePair], settings: AnyEstimator
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """What is trained on and what is measured on.

    By prompt: another pair of a prompt that was trained on would measure too well.
    """
    parts: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        u = uniform(settings.seed, prompt_id(pair.prompt), "held-out")
        parts[u <= settings.held_out].append(pair)
    return parts


def _read(pair: PreferencePair, reader: PairReader, dropped: Counter[str]) -> _Labelled | None:
    item = comparison_of(pair)
    other = Comparison(item.prompt, item.second, item.first, item.id)
    preference = 1.0 if pair.preference is None else pair.preference
    try:
        return _Labelled(reader.ids(item), reader.ids(other), preference)
    except RowProblem as problem:
        dropped[problem.reason] += 1
        return None


def _descend(
    model: PreTrainedModel,
    rows: Sequence[_Labelled],
    settings: Classifier,
    thinning: Thinning,
    pad_id: int,
    check: Callable[[], None],
) -> list[float]:
    """Loss [nats] of every step."""
    # Dropout of the model's own stays off: only the thinned units of the recipe are left out.
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    per_step = settings.pairs_per_step
    steps = settings.epochs * math.ceil(len(rows) / per_step)
    rising = max(round(settings.warmup * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / rising, (steps - s) / max(steps - rising, 1))
    )
    order = random.Random(f"{settings.seed}/order")
    losses: list[float] = []
    with progress("train the estimator", steps, "steps") as advance:
        for _ in range(settings.epochs):
            shuffled = order.sample(range(len(rows)), len(rows))
            for start in range(0, len(rows), per_step):
                check()
                batch = [rows[place] for place in shuffled[start : start + per_step]]
                with thinning.training_step(len(losses)):
                    loss = _loss(model, batch, pad_id)
                if not bool(torch.isfinite(loss)):
                    raise NumericalError(
                        f"The estimator's loss is {loss.item()} at step {len(losses) + 1} of "
                        f"{steps}: lower estimator.learning_rate, or load the backbone in float32."
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                advance(note=f"loss {losses[-1]:.4f}")
    return losses


def _loss(model: PreTrainedModel, batch: Sequence[_Labelled], pad_id: int) -> Tensor:
    ids, mask = padded([row.straight for row in batch] + [row.swapped for row in batch], pad_id)
    device = model.device
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).logits.float()
    p = [row.preference for row in batch]
    first_better = torch.tensor(p + [1.0 - one for one in p], device=device)
    target = torch.stack([first_better, 1.0 - first_better], dim=1)
    return torch.nn.functional.cross_entropy(logits, target)
