# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""Pipelines of diffusers at the edges: their parts are taken out, their encoders used once.

Stable Diffusion 1.x and 2.x, and XL. The trainer itself never sees a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from align.diffusion.components import Components
from align.diffusion.settings import DiffusionModel
from align.errors import MachineError, RecipeError

# Class -> what is said when it is loaded. A safety checker blanks images, and a black image would
# be taken for the reference's sample.
KNOWN: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {},
}


def load_pipeline(model: DiffusionModel) -> Components:
    """The parts of a pipeline from a folder or the Hub.

    Raises:
        RecipeError: a pipeline of another kind.
        MachineError: it cannot be loaded.
    """
    where = model.model_name_or_path
    known = KNOWN[_kind(model)]
    try:
        pipe = DiffusionPipeline.from_pretrained(where, revision=model.model_revision, **known)
    except (OSError, ValueError) as error:
        raise _unreachable(where, error) from error
    pipe.set_progress_bar_config(disable=True)
    # Encoders stay in float32: they run once, and XL's decoder overflows in float16.
    network = pipe.unet.eval()
    if model.dtype != "float32":
        network.to(getattr(torch, model.dtype))
    return Components(network, pipe.scheduler, PipelineEdges(pipe))


def network_config(model: DiffusionModel) -> dict[str, Any]:
    """The configuration of a pipeline's network; no weight is read.

    Raises:
        RecipeError: a pipeline of a kind that is not supported.
        MachineError: it cannot be loaded.
    """
    _kind(model)
    where = model.model_name_or_path
    try:
        found: Any = UNet2DConditionModel.load_config(
            where, subfolder="unet", revision=model.model_revision
        )
    except (OSError, ValueError) as error:
        raise _unreachable(where, error) from error
    return found


def _kind(model: DiffusionModel) -> str:
    """The pipeline's class, one of `KNOWN`."""
    where = model.model_name_or_path
    try:
        config: Any = DiffusionPipeline.load_config(where, revision=model.model_revision)
    except (OSError, ValueError) as error:
        raise _unreachable(where, error) from error
    kind = config["_class_name"]
    if kind not in KNOWN:
        raise RecipeError(
            f"model.model_name_or_path: {where} is a {kind}; recipes train {' and '.join(KNOWN)}. "
            "Other models go through DiffusionTrainer with an encoder of their own."
        )
    return kind


def _unreachable(where: str, error: Exception) -> MachineError:
    return MachineError(
        f"model.model_name_or_path: {where} cannot be loaded as a pipeline of diffusers "
        f"({error}). Give a folder with a model_index.json, or a Hub id and a network."
    )


class PipelineEdges:
    """Images to latents, captions to embeddings, latents to pictures.

    Args:
        pipe: whose encoders are used; its network is not.
        device: where they run, and are moved the first time.
    """

    def __init__(self, pipe: Any, device: torch.device | None = None) -> None:
        accelerator = torch.accelerator.current_accelerator()
        self._device = device or accelerator or torch.device("cpu")
        self._vae = pipe.vae.eval().requires_grad_(False)
        self._pipe = pipe
        self.is_xl = hasattr(pipe, "text_encoder_2")

    @torch.no_grad()
    def images(self, images: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, 4, H/8, W/8] of fitted images; XL also gets size and crop: [B, 6].

        The mode of the encoder's distribution, so that an image has one latent.

        Args:
            images: `FittedImage`s of one size.
        """
        pixels = torch.stack([image.pixels for image in images])
        vae = self._vae.to(self._device)
        coded = vae.encode(pixels.to(self._device)).latent_dist.mode()
        latents = (coded - self._shift) * vae.config.scaling_factor
        if not self.is_xl:
            return latents, {}
        side = pixels.shape[-1]
        ids = [[*image.original, *image.corner, side, side] for image in images]
        return latents, {"added_cond_kwargs.time_ids": torch.tensor(ids, dtype=torch.float32)}

    def captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Text embeddings [B, S, D]; XL's pooled ones as well."""
        return self._encoded(list(captions), which=0)

    def no_caption(self) -> dict[str, Tensor]:
        """What the pipeline itself gives the other half of guidance."""
        return self._encoded([""], which=1)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> np.ndarray:
        """[N, H, W, 3] uint8, decoded one by one."""
        vae = self._vae.to(self._device)
        made: list[Tensor] = []
        for latent in latents:
            z = latent[None].to(self._device) / vae.config.scaling_factor + self._shift
            made.append(vae.decode(z).sample.float().cpu())
        pixels = ((torch.cat(made).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).numpy()

    def release(self) -> None:
        """Moves the encoders off the accelerator; they come back when they are asked again."""
        for part in self._parts():
            part.to("cpu")

    @property
    def _shift(self) -> float:
        return float(self._vae.config.get("shift_factor") or 0.0)

    def _parts(self) -> list[Any]:
        names = ("vae", "text_encoder", "text_encoder_2")
        return [part for name in names if (part := getattr(self._pipe, name, None)) is not None]

    @torch.no_grad()
    def _encoded(self, captions: list[str], which: int) -> dict[str, Tensor]:
        """`which` 0 takes the captions' own embeddings, 1 those of no caption."""
        for part in self._parts():
            part.to(self._device)
        found = self._pipe.encode_prompt(
            captions,
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        given = {"encoder_hidden_states": found[which]}
        if self.is_xl:
            given["added_cond_kwargs.text_embeds"] = found[2 + which]
        return given
