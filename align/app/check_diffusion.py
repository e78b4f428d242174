# diffusers does not declare what it exports.
# pyright: basic, reportPrivateImportUsage=false
"""The dry run of a recipe that trains a diffusion model: its model's kind, records, steps, disk."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch

from align.app.cost import Machine
from align.app.diffusion import WORLD_RECORDS, need_diffusers
from align.app.diffusion_recipe import DiffusionRecipe
from align.diffusion.records import RecordReader
from align.errors import DataError, MachineError

# Of a Hub data set, which may hold a million pictures.
LOOKED_AT = 64
_FLOAT32 = 4
# Weights and two moments of Adam, in float32.
_CHECKPOINT = 3 * _FLOAT32


def check_diffusion(recipe: DiffusionRecipe, run_dir: Path) -> str:
    """The dry run: no weight is loaded and no picture encoded.

    Args:
        recipe: what would be trained.
        run_dir: where the run would lie.

    Raises:
        RecipeError: a pipeline of a kind that is not supported.
        DataError: no record, too few of them, or too many that cannot be used.
        MachineError: the pipeline cannot be reached, diffusers is missing, the disk is too small.
    """
    need_diffusers()
    rows = _records(recipe)
    total, trained = _parameters(recipe)
    train = recipe.train
    size = train.pool_size or (
        train.updates_per_round
        * train.per_device_train_batch_size
        * train.gradient_accumulation_steps
    )
    checkpoint = trained * _CHECKPOINT
    free = Machine.here(run_dir, use_cpu=train.use_cpu).free_disk
    # The new checkpoint is whole before the oldest goes, and the model is written beside them.
    kept = 2 * checkpoint + trained * _FLOAT32
    if kept > free:
        raise MachineError(
            f"The run needs about {kept / 1e9:.3g} GB of disk for checkpoints and model, and "
            f"{free / 1e9:.3g} GB are free: name a --run folder on another disk."
        )
    return "\n".join(
        [
            rows,
            f"rounds: {train.rounds}, each of {train.updates_per_round} updates on {size} records "
            "per process",
            f"parameters of the network: {total:,}, trained {trained:,}",
            f"disk: about {kept / 1e9:.3g} GB without the latents; {free / 1e9:.3g} GB free",
        ]
    )


def _records(recipe: DiffusionRecipe) -> str:
    """What is said of the records.

    Raises:
        DataError: there are too few that can be used.
    """
    data = recipe.data
    if recipe.model.is_world:
        kept, whole = data.limit or WORLD_RECORDS, True
        said = f"records: {kept}, drawn by {data.records}"
    else:
        reader = RecordReader(data, with_rejected="rejected" in recipe.objective.needs)
        # A file is read to its end, as a run reads it.
        whole = Path(data.records).expanduser().exists()
        for _ in itertools.islice(reader, None if whole else LOOKED_AT):
            pass
        if not reader.report.read:
            raise DataError(
                f"data.records: {data.records} holds no row. Check the file and data.split."
            )
        kept = reader.report.kept
        said = f"records: {reader.report.summary().rstrip('.')}"
        if whole:
            reader.report.check(data.max_dropped)
        else:
            said += f"; of the Hub's data set no more than the first {kept} were read"
    if not kept:
        raise DataError(
            f"{said}, so nothing can be trained on. Check data.records and data.format."
        )
    if whole and data.held_out >= kept:
        raise DataError(
            f"data.held_out keeps {data.held_out} of {kept} records, so none is left to train on. "
            "Write a smaller number."
        )
    return said


def _parameters(recipe: DiffusionRecipe) -> tuple[int, int]:
    """Weights of the network, and those that are trained; counted on the meta device."""
    # diffusers is optional.
    from diffusers import UNet2DConditionModel

    from align.diffusion.loading import network_config

    config = network_config(recipe.model)
    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config(config)
    total = sum(parameter.numel() for parameter in network.parameters())
    model = recipe.model
    if not model.use_peft:
        return total, total
    ends = tuple(f".{name}" for name in model.lora_target_modules)
    adapted = [
        layer.weight.shape[0] + math.prod(layer.weight.shape[1:])
        for name, layer in network.named_modules()
        if f".{name}".endswith(ends) and hasattr(layer, "weight")
    ]
    return total, sum(adapted) * model.lora_r
