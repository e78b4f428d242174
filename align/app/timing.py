# pyright: basic
"""How long a training run will take, from two of its steps on this machine."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from align.app.cost import optimizer_steps
from align.policies.loading import load_policy
from align.recipe import Recipe
from align.stages.trained_rows import rows_for
from align.stages.training import adapter_of, quieten, training_arguments

STEPS = 2


@dataclass(frozen=True)
class Duration:
    """What two steps say about a run.

    Attributes:
        per_step: seconds of the second step; the first one has allocations and caches to fill.
        per_epoch: steps of an epoch.
        steps: of the whole run.
    """

    per_step: float
    per_epoch: int
    steps: int

    def __str__(self) -> str:
        """For people."""
        epoch, whole = (_spoken(self.per_step * n) for n in (self.per_epoch, self.steps))
        return (
            f"time: {self.per_step:.3g} s a step on one process of this machine (the second of "
            f"{STEPS}), about {epoch} an epoch of {self.per_epoch} steps, {whole} for all "
            f"{self.steps}; scoring roles and evaluations come on top"
        )


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def timed_steps(recipe: Recipe, folder: str, tokenizer: Any, rows: Sequence[Any]) -> Duration:
    """Trains two steps on rows drawn at random, and throws everything away.

    Args:
        recipe: what would be trained.
        folder: of the start policy.
        tokenizer: its, or its processor.
        rows: tokenised pairs or groups to train on.
    """
    train = recipe.train
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    drawn = random.Random(train.seed).choices(rows, k=STEPS * per_step)
    kind = rows_for(recipe.objective)
    short = {
        "max_steps": STEPS,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "dataloader_drop_last": False,
    }
    tried = recipe.model_copy(update={"train": train.model_copy(update=short)})
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        set_seed(train.seed)
        model: Any = load_policy(recipe.model, folder)
        trainer = kind.trainer(
            model,
            args=training_arguments(tried, Path(scratch), ()),
            train_dataset=kind.table(drawn),
            processing_class=tokenizer,
            peft_config=adapter_of(recipe.model),
            objective=recipe.objective,
            roles={
                role: source
                for role, source in recipe.roles.given.items()
                if role in recipe.objective.needs
            },
        )
        quieten(trainer)
        trainer.add_callback(clock)
        trainer.train()
    before, after = clock.ends
    epoch = train.model_copy(update={"max_steps": -1, "num_train_epochs": 1.0})
    return Duration(
        per_step=after - before,
        per_epoch=optimizer_steps(epoch, len(rows), 1),
        steps=optimizer_steps(train, len(rows), 1),
    )


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
