"""Coloured shapes on black, 8 x 8 pixels: a text-to-image model, an exact reward, an exact guard.

A caption names a shape (`a square`, `a plus`, `a cross`); size, place and colour are free. The base
model, a small conditional UNet, is trained from scratch on images of all colours. Preference
training is to make the shapes red, and colour is no part of the caption: whoever gains the reward
by painting red blobs loses the guard, the overlap with the best shape of the caption.

Pixels are in [0, 1] where they are measured and in [-1, 1] where the model sees them, which takes
them as they are: its latents are the images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from align.errors import DataError
from align.runs.cache import cached_folder, made_by

SIDE = 8
SHAPES = ("square", "plus", "cross")
CAPTIONS = tuple(f"a {shape}" for shape in SHAPES)
SIZES = (3, 5)
PLACES = 4  # per axis
FOREGROUND = 0.15  # of the brightest channel
FEWEST = 4  # foreground pixels that are an image of something
RED = ((0.7, 1.0), (0.1, 0.4), (0.1, 0.4))
NOT_RED = ((0.1, 0.4), (0.7, 1.0), (0.7, 1.0))
ANY_COLOUR = ((0.2, 1.0),) * 3
WIDTH = 32  # of a caption's embedding
_UNET = Path(__file__).with_name("unet.py")


@dataclass(frozen=True)
class ShapesSettings:
    """What the base model is made from.

    Attributes:
        channels: of the UNet's two levels.
        images: that it is trained on.
        steps: optimizer steps.
        batch: images per step.
        learning_rate: peak of the one-cycle schedule.
        times: of the noise schedule.
        seed: of weights, images and noise.
    """

    channels: tuple[int, int] = (24, 40)
    images: int = 8192
    steps: int = 600
    batch: int = 48
    learning_rate: float = 2e-3
    times: int = 200
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Images:
    """Drawn images, with what they show.

    Attributes:
        pixels: [N, 3, 8, 8] float32 in [0, 1].
        shape_of: [N] int64, index into `SHAPES`.
    """

    pixels: Tensor
    shape_of: Tensor

    @property
    def captions(self) -> list[str]:
        """[N] captions."""
        return [CAPTIONS[i] for i in self.shape_of.tolist()]


def _masks() -> Tensor:
    """[3, 32, 8, 8] bool: every size and place of every shape."""
    masks = torch.zeros(len(SHAPES), len(SIZES), PLACES, PLACES, SIDE, SIDE, dtype=torch.bool)
    for index, size in enumerate(SIZES):
        middle, line = size // 2, torch.arange(size)
        stamp = torch.zeros(len(SHAPES), size, size, dtype=torch.bool)
        stamp[0] = True
        stamp[1, middle], stamp[1, :, middle] = True, True
        stamp[2, line, line], stamp[2, line, line.flip(0)] = True, True
        for y in range(PLACES):
            for x in range(PLACES):
                masks[:, index, y, x, y : y + size, x : x + size] = stamp
    return masks.flatten(1, 3)


MASKS = _masks()


def draw(
    count: int,
    generator: torch.Generator,
    colour: Sequence[tuple[float, float]],
    shape_of: Tensor | None = None,
) -> Images:
    """Images of random shapes, sizes and places, their colour uniform in a box.

    Args:
        count: how many.
        generator: of everything random.
        colour: lowest and highest of each channel.
        shape_of: [count] the shapes, where they are given.
    """
    if shape_of is None:
        shape_of = torch.randint(len(SHAPES), (count,), generator=generator)
    place = torch.randint(MASKS.shape[1], (count,), generator=generator)
    low, high = torch.tensor(colour).unbind(dim=1)
    colours = low + torch.rand(count, 3, generator=generator) * (high - low)
    mask = MASKS[shape_of, place].float()
    return Images(colours[:, :, None, None] * mask[:, None], shape_of)


def reward(pixels: Tensor) -> Tensor:
    """[N] in [-1, 1]: mean of R - (G + B) / 2 over the foreground; -1 where there is next to none.

    Args:
        pixels: [N, 3, 8, 8] in [0, 1].
    """
    foreground = pixels.amax(dim=1) > FOREGROUND  # [N, 8, 8]
    redness = pixels[:, 0] - (pixels[:, 1] + pixels[:, 2]) / 2
    count = foreground.sum(dim=(1, 2))
    mean = (redness * foreground).sum(dim=(1, 2)) / count.clamp(min=1)
    return torch.where(count >= FEWEST, mean, -1.0)


def shape_quality(pixels: Tensor, shape_of: Tensor) -> Tensor:
    """[N] in [0, 1]: overlap of the foreground with the best of the caption's 32 shapes.

    Intersection over union of pixels; 1 is a perfect shape.

    Args:
        pixels: [N, 3, 8, 8] in [0, 1].
        shape_of: [N] the captions' shapes.
    """
    foreground = (pixels.amax(dim=1) > FOREGROUND)[:, None]  # [N, 1, 8, 8]
    wanted = MASKS[shape_of]
    both = (foreground & wanted).sum(dim=(2, 3))
    either = (foreground | wanted).sum(dim=(2, 3))
    return (both / either).amax(dim=1)


def estimate(values: Tensor) -> dict[str, float | int]:
    """Mean, its 95 % interval by the normal approximation, and n."""
    n = len(values)
    value = float(values.double().mean())
    half = 1.96 * float(values.double().std()) / math.sqrt(n)
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def measure(pixels: Tensor, shape_of: Tensor) -> dict[str, dict[str, float | int]]:
    """Reward and shape quality of images: `shapes/<metric>` -> value, low, high, n."""
    found = reward(pixels)
    return {
        "shapes/reward": estimate(found),
        "shapes/red": estimate((found > 0.3).float()),
        "shapes/quality": estimate(shape_quality(pixels, shape_of)),
    }


def to_pixels(latents: Tensor) -> Tensor:
    """What the model sees, in [-1, 1], as pixels in [0, 1] on the 8-bit grid."""
    return (((latents.clamp(-1, 1) + 1) / 2) * 255).round() / 255


class ShapesEncoder:
    """The world's captions and images as the network's inputs: the images are their own latents.

    Args:
        embedding: [3, 32] of the captions, as trained with the base model and fixed since.
    """

    def __init__(self, embedding: Tensor) -> None:
        self.embedding = embedding

    def images(self, images: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, 3, 8, 8] in [-1, 1], from tensors [3, 8, 8] in [0, 1]."""
        return torch.stack(list(images)) * 2 - 1, {}

    def captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """A caption is one token: [B, 1, 32].

        Raises:
            DataError: a caption that the world does not know.
        """
        unknown = [caption for caption in captions if caption not in CAPTIONS]
        if unknown:
            raise DataError(
                f"world:shapes knows no caption {unknown[0]!r}; it knows {', '.join(CAPTIONS)}."
            )
        rows = [CAPTIONS.index(caption) for caption in captions]
        return {"encoder_hidden_states": self.embedding[rows][:, None]}

    def no_caption(self) -> dict[str, Tensor]:
        """The mean of the captions; the model was never trained without one."""
        return {"encoder_hidden_states": self.embedding.mean(dim=0)[None, None]}

    def release(self) -> None:
        """Nothing to free: the embedding is three rows."""

    def pictures(self, latents: Tensor) -> np.ndarray:
        """[N, 8, 8, 3] uint8."""
        pixels = (to_pixels(latents) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).numpy()


class Shapes:
    """The world of coloured shapes; `ShapesSettings` say how its base model is made."""

    name = "shapes"

    def __init__(self, settings: ShapesSettings | None = None) -> None:
        self.settings = settings or ShapesSettings()

    def base_model(self) -> Path:
        """The folder of the base model, trained on the first call (a minute).

        It holds `unet/` and `scheduler/`, as diffusers saves them, and the captions' embedding.
        """
        import diffusers  # diffusers is optional

        parts = {
            "settings": asdict(self.settings),
            "diffusers": diffusers.__version__,
            **made_by(__file__, str(_UNET)),
        }
        # Through JSON, because a manifest gives lists back where tuples were.
        return cached_folder(f"worlds/{self.name}", json.loads(json.dumps(parts)), self._build)

    def encoder(self, folder: Path) -> ShapesEncoder:
        """The captions' embedding of the base model in `folder`."""
        return ShapesEncoder(load_file(folder / "captions.safetensors")["embedding"])

    def records(self, count: int, *, seed: int) -> list[tuple[Tensor, str, Tensor]]:
        """`count` red images, their captions, and images of the same shapes that are not red."""
        generator = torch.Generator().manual_seed(seed)
        chosen = draw(count, generator, RED)
        rejected = draw(count, generator, NOT_RED, chosen.shape_of)
        return list(zip(chosen.pixels, chosen.captions, rejected.pixels, strict=True))

    def asked(self, count: int, *, seed: int) -> list[int]:
        """`count` shapes to ask for, each as often as the others."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        return (order % len(SHAPES)).tolist()

    def _build(self, folder: Path) -> None:
        # diffusers is optional.
        from align.worlds.unet import scheduler_from_scratch, unet_from_scratch

        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = unet_from_scratch(SIDE, settings.channels, WIDTH)
        scheduler = scheduler_from_scratch(settings.times)
        embedding = torch.nn.Parameter(torch.randn(len(SHAPES), WIDTH, generator=generator))
        self._fit(network, scheduler, embedding, generator)
        network.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        save_file({"embedding": embedding.detach()}, folder / "captions.safetensors")

    def _fit(
        self, network: Any, scheduler: Any, embedding: Tensor, generator: torch.Generator
    ) -> None:
        """Denoising of images of all colours."""
        settings = self.settings
        images = draw(settings.images, generator, ANY_COLOUR)
        trained = [*network.parameters(), embedding]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.learning_rate, total_steps=settings.steps
        )
        network.train()
        for _ in range(settings.steps):
            rows = torch.randint(settings.images, (settings.batch,), generator=generator)
            x0 = images.pixels[rows] * 2 - 1
            e = torch.randn(x0.shape, generator=generator)
            t = torch.randint(settings.times, (settings.batch,), generator=generator)
            given = embedding[images.shape_of[rows]][:, None]
            predicted = network(scheduler.add_noise(x0, e, t), t, given, return_dict=False)[0]
            functional.mse_loss(predicted, e).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        network.eval()
