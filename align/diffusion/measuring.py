"""What is measured and shown before and after training, on the same noise both times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from align.diffusion.components import Edges
from align.diffusion.denoiser import Denoiser
from align.diffusion.latents import LatentData
from align.diffusion.objectives import squared_error
from align.diffusion.pool import sample_rows
from align.diffusion.seeds import generator_for
from align.diffusion.settings import DiffusionEvaluate, DiffusionSampler
from align.worlds import shapes

DRAWS = 4  # timesteps and noises of a held-out record


@dataclass(frozen=True, eq=False)
class Measured:
    """One model, measured.

    Attributes:
        metrics: `<measurement>/<metric>` -> value, low, high, n.
        pictures: [N, H, W, 3] uint8, or None where none were asked for.
    """

    metrics: dict[str, Any]
    pictures: np.ndarray | None


def measure_model(
    evaluate: DiffusionEvaluate,
    sampler: DiffusionSampler,
    denoiser: Denoiser,
    network: nn.Module,
    edges: Edges,
    data: LatentData,
    held_out: LatentData | None,
    device: torch.device,
) -> Measured:
    """The suite of a recipe, and pictures for the first held-out captions.

    Args:
        evaluate: what to measure.
        sampler: how to sample.
        denoiser: on the model's schedule.
        network: in evaluation mode, on `device`.
        edges: to make pictures of latents.
        data: the records that are trained on.
        held_out: those that are not, or None.
        device: of the network.
    """
    metrics: dict[str, Any] = {}
    if "denoising" in evaluate.suite:
        assert held_out is not None
        metrics |= _denoising(evaluate, denoiser, network, held_out, device)

    def sampled(of: LatentData, rows: Sequence[int]) -> torch.Tensor:
        return sample_rows(
            denoiser, network, of, rows, range(len(rows)), sampler, name="evaluation",
            seed=evaluate.seed, device=device,
        )  # fmt: skip

    if "shapes" in evaluate.suite:
        asked = shapes.Shapes().asked(evaluate.n, seed=evaluate.seed)
        row_of = {data.caption(row): row for row in range(len(data))}
        latents = sampled(data, [row_of[shapes.CAPTIONS[shape]] for shape in asked])
        metrics |= shapes.measure(shapes.to_pixels(latents), torch.tensor(asked))
    pictures: np.ndarray | None = None
    shown = held_out or data
    if evaluate.pictures:
        rows = range(min(evaluate.pictures, len(shown)))
        pictures = edges.pictures(sampled(shown, rows))
    return Measured(metrics, pictures)


def _denoising(
    evaluate: DiffusionEvaluate,
    denoiser: Denoiser,
    network: nn.Module,
    held_out: LatentData,
    device: torch.device,
) -> dict[str, Any]:
    """Error on held-out chosen images, and on rejected ones where there are any."""
    found: dict[str, list[torch.Tensor]] = {"chosen": [], "rejected": []}
    for row in range(len(held_out)):
        batch = held_out.batch([row])
        generator = generator_for(evaluate.seed, "denoising", row)
        # One timestep in each part of the schedule: less variance than as many drawn anywhere.
        share = (torch.arange(DRAWS) + torch.rand(DRAWS, generator=generator)) / DRAWS
        t = (share * denoiser.times).long().to(device)
        e = torch.randn((DRAWS, *held_out.shape), generator=generator).to(device)
        given = {k: v.to(device).repeat_interleave(DRAWS, 0) for k, v in batch.given.items()}
        for side, image in (("chosen", batch.chosen), ("rejected", batch.rejected)):
            if image is None:
                continue
            x = image.to(device).expand_as(e)
            with torch.no_grad():
                predicted = denoiser.predict(network, denoiser.noise(x, e, t), t, given)
            error = squared_error(denoiser.target(x, e, t), predicted, "mean")
            found[side].append(error.mean().cpu())
    return {
        f"denoising/{side}_error": shapes.estimate(torch.stack(errors))
        for side, errors in found.items()
        if len(errors) > 1
    }
