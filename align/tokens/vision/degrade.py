"""Degraded pictures: random pixels set to the picture's mean colour, after all preprocessing.

Yang et al. 2025, OPA-DPO (arXiv 2501.09695), and the program of its authors: 30 % of the pixels,
the same in all channels. Differs from the program: the choice belongs to the row and not to the
training step, so that policy and roles see one picture and stored role scores stay valid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.data.images import Degraded


def degrade(pixels: Tensor, degraded: Degraded, number: int = 0) -> Tensor:
    """`pixels` with floor(share * P) of its P positions at the mean over all positions.

    Args:
        pixels: [C, P], one preprocessed picture with its positions in a row, or [C, H, W].
        degraded: share and seed.
        number: of the picture in its row; each has a choice of its own.

    Returns:
        A new tensor of the same shape and type.
    """
    flat = pixels.reshape(pixels.shape[0], -1)
    positions = flat.shape[1]
    generator = torch.Generator().manual_seed((degraded.seed << 8) + number)
    order = torch.randperm(positions, generator=generator)
    lost = order[: int(degraded.share * positions)].to(pixels.device)
    mean = flat.to(torch.float64).mean(dim=1, keepdim=True).to(pixels.dtype)
    changed = flat.clone()
    changed[:, lost] = mean
    return changed.reshape(pixels.shape)


def degrade_patches(pixels: Tensor, degraded: Degraded, number: int, *, channels: int) -> Tensor:
    """The same for a picture that Qwen-VL's processor has cut into patches.

    Args:
        pixels: [N, C * frames * side * side], one picture's patches; a still picture fills the
            frames with copies of itself, which lose the same pixels.
        degraded: share and seed.
        number: of the picture in its row.
        channels: C times the number of frames.
    """
    patches, values = pixels.shape
    by_channel = pixels.reshape(patches, channels, values // channels).transpose(0, 1)
    changed = degrade(by_channel.reshape(channels, -1), degraded, number)
    return changed.reshape(by_channel.shape).transpose(0, 1).reshape(patches, values)
