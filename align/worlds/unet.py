# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""A conditional UNet small enough to be trained from scratch on one CPU core, and its schedule."""

from __future__ import annotations

from typing import Literal, TypeAlias

from diffusers import DDPMScheduler, UNet2DConditionModel

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


def unet_from_scratch(
    side: int, channels: tuple[int, int], width: int, *, in_channels: int = 3
) -> UNet2DConditionModel:
    """Two levels, attention to the caption in the lower one and in the middle.

    Args:
        side: pixels of an image's side.
        channels: of the two levels, multiples of 8.
        width: of a caption token's embedding.
        in_channels: of an image.
    """
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def scheduler_from_scratch(times: int, prediction_type: Prediction = "epsilon") -> DDPMScheduler:
    """The cosine schedule of Nichol and Dhariwal 2021 (arXiv:2102.09672).

    Args:
        times: T.
        prediction_type: what the network predicts.
    """
    return DDPMScheduler(
        num_train_timesteps=times,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        clip_sample=True,
    )
