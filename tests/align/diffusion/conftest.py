"""Trainers on a small network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.diffusion.denoiser import DiffusersDenoiser, Sampler
from align.diffusion.latents import LatentData
from align.diffusion.objectives import DiffusionObjective
from align.diffusion.policies import TwoAdapters, TwoNetworks
from align.diffusion.trainer import DiffusionTrainer
from align.worlds.unet import scheduler_from_scratch
from tests.align.diffusion.small import random_records, settings, small_network

TrainerOf = Callable[..., DiffusionTrainer]


@pytest.fixture
def trainer_of() -> TrainerOf:
    def made(
        objective: DiffusionObjective,
        *,
        adapters: bool = False,
        output_dir: Path | None = None,
        data: LatentData | None = None,
        **changes: Any,
    ) -> DiffusionTrainer:
        train = settings(**changes)
        network = small_network()
        policy = (
            TwoAdapters(network, rank=2, alpha=4, target_modules=("to_q", "to_v"), seed=0)
            if adapters
            else TwoNetworks(network, with_reference="reference" in objective.needs)
        )
        denoiser = DiffusersDenoiser(
            scheduler_from_scratch(50),
            Sampler(steps=2, guidance_scale=train.sampler.guidance_scale),
        )
        return DiffusionTrainer(
            policy, denoiser, objective, train, data or random_records(), output_dir=output_dir
        )

    return made
