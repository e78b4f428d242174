"""What a training run costs beside memory, known before it: lengths, steps, disk."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from align.app.memory import Parameters, optimizer_bytes, trained_bytes
from align.recipe import KindRecipe, Recipe, Train
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Bytes of a stored token id, and of a role's log-prob.
_ID, _LOGP = 8, 4


@dataclass(frozen=True)
class Machine:
    """What is free here, in bytes.

    Attributes:
        free_disk: where the run will lie.
        free_memory: of a device.
        memory_of: that device, in words.
        program: what this process, which holds no weights, takes of that memory.
    """

    free_disk: int
    free_memory: int
    memory_of: str
    program: int = 0

    @classmethod
    def here(cls, run: Path, *, use_cpu: bool = False) -> Machine:
        """This machine, with the disk that `run` will lie on."""
        existing = next(
            folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists()
        )
        if torch.cuda.is_available() and not use_cpu:
            free, memory_of, program = torch.cuda.mem_get_info()[0], "the GPU", 0
        else:
            free, memory_of = psutil.virtual_memory().available, "this machine"
            program = psutil.Process().memory_info().rss
        return cls(shutil.disk_usage(existing).free, free, memory_of, program)

    def with_memory(self, gigabytes: float) -> Machine:
        """This disk, and a device elsewhere with so much memory (10^9 bytes)."""
        size = round(gigabytes * 1e9)
        return replace(self, free_memory=size, memory_of="the device of --memory", program=0)


@dataclass(frozen=True)
class Lengths:
    """Lengths of one part of all rows, in tokens; `p95` is the nearest rank."""

    minimum: int
    median: float
    p95: int
    maximum: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The statistics of at least one length."""
        ranked = sorted(lengths)
        p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
        return cls(ranked[0], statistics.median(ranked), p95, ranked[-1])

    def __str__(self) -> str:
        return f"min {self.minimum}, median {self.median:g}, p95 {self.p95}, max {self.maximum}"


@dataclass(frozen=True)
class Disk:
    """Bytes in the run's folder and the caches, at their most."""

    checkpoint: int
    checkpoints: int
    model: int
    caches: int

    @property
    def total(self) -> int:
        """All of it; `checkpoints` counts those kept at once."""
        return self.checkpoint * self.checkpoints + self.model + self.caches


def optimizer_steps(train: Train, pairs: int, processes: int) -> int:
    """Optimizer steps of a whole run, as transformers counts them."""
    if train.max_steps > 0:
        return train.max_steps
    per_batch = train.per_device_train_batch_size * processes
    batches = pairs // per_batch if train.dataloader_drop_last else math.ceil(pairs / per_batch)
    per_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    return math.ceil(train.num_train_epochs * per_epoch)


def estimate_disk(
    recipe: Recipe,
    rows: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
    steps: int,
) -> Disk:
    """Bytes of checkpoints kept at once, the finished model, tokenised pairs and role scores."""
    completions = sum(len(row.chosen_ids) + len(row.rejected_ids) for row in rows)
    prompts = sum(len(row.prompt_ids) for row in rows)
    caches = cached_bytes(recipe, prompts, completions)
    return run_disk(recipe, parameters, model_config, steps, caches)


def cached_bytes(recipe: Recipe, prompts: int, completions: int) -> int:
    """Bytes of tokenised rows, and of the scores of roles.

    Args:
        recipe: its objective and roles.
        prompts: tokens of all prompts.
        completions: tokens of all completions.
    """
    sources = {s for r, s in recipe.roles.given.items() if r in recipe.objective.needs}
    return _ID * (prompts + completions) + _LOGP * completions * len(sources)


def run_disk(
    recipe: Recipe | KindRecipe,
    parameters: Parameters,
    model_config: PreTrainedConfig,
    steps: int,
    caches: int,
) -> Disk:
    """Bytes of checkpoints kept at once and of the finished model, beside those of the caches."""
    train: Train = recipe.train
    model = trained_bytes(recipe, parameters, model_config)
    optimizer = 0 if train.save_only_model else optimizer_bytes(recipe, parameters, model)
    match train.save_strategy:
        case "no":
            saves = 0
        case "epoch":
            saves = math.ceil(train.num_train_epochs)
        case _:
            every = (
                train.save_steps if train.save_steps >= 1 else math.ceil(train.save_steps * steps)
            )
            saves = math.ceil(steps / every)  # the last step is always saved
    # The new checkpoint is whole before the oldest goes.
    kept = saves if train.save_total_limit is None else min(saves, train.save_total_limit + 1)
    return Disk(
        checkpoint=model + optimizer,
        checkpoints=kept,
        model=model,
        caches=caches,
    )


def in_units(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
