"""The named trainer: it fixes the formula's class; its configuration has the formula's fields."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from align.diffusion.config import SePPOConfig
from align.diffusion.denoiser import Denoiser
from align.diffusion.latents import LatentData
from align.diffusion.policies import PolicyAndReference
from align.diffusion.trainer import DiffusionTrainer


class SePPOTrainer(DiffusionTrainer):
    """Semi-policy preference optimization: from chosen images alone.

    Args:
        policy: the policy and its reference.
        denoiser: how images are noised, denoised and sampled.
        config: the formula's fields and those of training.
        data: the records; rejected images are not read.
        output_dir: of checkpoints, earlier policies and samples.
        accelerator: made from `config` where it is None.
    """

    def __init__(
        self,
        policy: PolicyAndReference,
        denoiser: Denoiser,
        config: SePPOConfig,
        data: LatentData,
        *,
        output_dir: Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(
            policy, denoiser, config.objective, config.training, data,
            output_dir=output_dir, accelerator=accelerator,
        )  # fmt: skip
