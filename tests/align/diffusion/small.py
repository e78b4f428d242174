"""A UNet of a few thousand weights, random records, and settings that train it in no time."""

from typing import Any

import numpy as np
import torch

from align.diffusion.latents import LatentData
from align.diffusion.settings import DiffusionSampler, DiffusionTrain
from align.worlds.unet import unet_from_scratch

WIDTH = 8


def small_network(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return unet_from_scratch(8, (8, 16), WIDTH).eval()


def random_records(count: int = 12, *, rejected: bool = True) -> LatentData:
    draw = np.random.default_rng(0)

    def images() -> np.ndarray:
        return draw.normal(size=(count, 3, 8, 8)).astype(np.float32)

    captions = draw.normal(size=(3, 1, WIDTH)).astype(np.float32)
    return LatentData(
        chosen=images(),
        rejected=images() if rejected else None,
        caption_of=np.arange(count) % 3,
        captions=("a", "b", "c"),
        by_caption={"encoder_hidden_states": captions},
        by_record={},
        no_caption={"encoder_hidden_states": captions[:1] * 0},
        rows=np.arange(count),
    )


def settings(**changes: Any) -> DiffusionTrain:
    sampler = DiffusionSampler(steps=2, guidance_scale=1, batch=4)
    values = {
        "rounds": 3,
        "updates_per_round": 2,
        "pool_size": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "sampler": sampler,
        "use_cpu": True,
        "logging_steps": 1,
    }
    return DiffusionTrain(**{**values, **changes})
