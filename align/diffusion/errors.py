"""The denoising errors of one batch under policy and reference: one noise, one timestep each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from align.diffusion.denoiser import Denoiser, Timesteps, draw_times
from align.diffusion.latents import LatentBatch
from align.diffusion.objectives import DenoisingErrors, Reduction, squared_error
from align.types import Pair


class HasReference(Protocol):
    """Where the reference comes from."""

    def reference(self) -> AbstractContextManager[nn.Module]:
        """A context in which the reference, without gradient, can be called."""
        ...


def draw_noise(
    batch: LatentBatch,
    times: int,
    generator: torch.Generator,
    distribution: Timesteps,
    bounds: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """[B] timesteps and [B, C, H, W] noise for a batch, on the CPU."""
    t = draw_times(len(batch.chosen), times, generator, distribution=distribution, bounds=bounds)
    return t, torch.randn(batch.chosen.shape, generator=generator)


def batch_errors(
    denoiser: Denoiser,
    policy: nn.Module,
    frozen: HasReference | None,
    batch: LatentBatch,
    rejected: Tensor | None,
    t: Tensor,
    e: Tensor,
    reduction: Reduction,
    device: torch.device,
) -> DenoisingErrors:
    """Errors of both images of a record, by both models.

    Both images share timestep and noise, which takes out most of the variance of their difference,
    and one forward pass; so do policy and reference.

    Args:
        denoiser: how images are noised, and what is to be predicted.
        policy: the network that is trained.
        frozen: has the reference; None where the formula compares with none.
        batch: the records.
        rejected: [B, C, H, W] what stands for the worse image; None where none is read.
        t: [B] timesteps.
        e: [B, C, H, W] noise.
        reduction: over channels and pixels.
        device: of the networks.
    """
    count = len(batch.chosen)
    x, t, e = batch.chosen.to(device), t.to(device), e.to(device)
    given: Mapping[str, Tensor] = {k: v.to(device) for k, v in batch.given.items()}
    if rejected is not None:
        x = torch.cat([x, rejected.to(device)])
        t, e = torch.cat([t, t]), torch.cat([e, e])
        given = {name: torch.cat([tensor, tensor]) for name, tensor in given.items()}
    z, target = denoiser.noise(x, e, t), denoiser.target(x, e, t)
    reference: Pair[Tensor] | None = None
    if frozen is not None:
        # Before the policy's pass: with adapters, activating the reference's freezes the policy's,
        # which must not happen between its forward and backward pass.
        with frozen.reference() as network:
            found = squared_error(target, denoiser.predict(network, z, t, given), reduction)
        reference = Pair(found[:count], found[count:])
    found = squared_error(target, denoiser.predict(policy, z, t, given), reduction)
    return DenoisingErrors(
        Pair(found[:count], found[count:] if rejected is not None else None), reference
    )
