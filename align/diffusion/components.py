"""A text-to-image model in its parts, and what the recipe's sections make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from align.diffusion.denoiser import DiffusersDenoiser, Sampler
from align.diffusion.latents import Encoder
from align.diffusion.objectives import DiffusionObjective
from align.diffusion.policies import PolicyAndReference, TwoAdapters, TwoNetworks
from align.diffusion.settings import DiffusionModel, DiffusionSampler


class Edges(Encoder, Protocol):
    """Both edges of a model: pixels and words in, pixels out."""

    def release(self) -> None:
        """Frees the accelerator's memory until the edges are used again."""
        ...

    def pictures(self, latents: Tensor) -> np.ndarray:
        """[N, H, W, 3] uint8."""
        ...


@dataclass(frozen=True, eq=False)
class Components:
    """A text-to-image model in its parts.

    Attributes:
        network: the UNet or transformer, in evaluation mode.
        scheduler: the model's own.
        edges: encoders and decoder.
    """

    network: nn.Module
    scheduler: Any
    edges: Edges


def denoiser_of(scheduler: Any, sampler: DiffusionSampler) -> DiffusersDenoiser:
    """The denoiser on the model's scheduler and the recipe's sampler."""
    return DiffusersDenoiser(
        scheduler,
        Sampler(sampler.scheduler, sampler.steps, sampler.guidance_scale, sampler.options),
    )


def policy_of(
    model: DiffusionModel, network: Any, objective: DiffusionObjective, seed: int
) -> PolicyAndReference:
    """The policy, full or LoRA, and its reference where the formula needs one."""
    if model.use_peft:
        return TwoAdapters(
            network,
            rank=model.lora_r,
            alpha=model.lora_alpha,
            target_modules=model.lora_target_modules,
            seed=seed,
        )
    return TwoNetworks(network, with_reference="reference" in objective.needs)


def save_model(policy: PolicyAndReference, components: Components, folder: Path) -> None:
    """Writes what was trained: `unet/` or `transformer/`, or a LoRA file that diffusers loads."""
    network: Any = policy.network
    if isinstance(policy, TwoAdapters):
        policy.save(folder)
        return
    name = "unet" if "UNet" in type(network).__name__ else "transformer"
    network.save_pretrained(folder / name)
    components.scheduler.save_pretrained(folder / "scheduler")
