"""Images as a model trains on them: one size, values in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


class FittedImage:
    """An image at the size that a model trains at: shorter side scaled, middle cut out.

    The cut is never random, so that chosen and rejected see the same part.

    Args:
        image: of any size and mode.
        side: pixels.

    Attributes:
        pixels: [3, side, side] float32 in [-1, 1].
        original: height and width it came in.
        corner: top and left of the cut, in scaled pixels.
    """

    def __init__(self, image: Image.Image, side: int) -> None:
        rgb = image.convert("RGB")
        width, height = rgb.size
        scale = side / min(width, height)
        scaled = (max(side, round(width * scale)), max(side, round(height * scale)))
        rgb = rgb.resize(scaled, Image.Resampling.LANCZOS)
        left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
        values = torch.from_numpy(np.array(rgb, dtype=np.float32))
        self.pixels = values.permute(2, 0, 1) / 127.5 - 1
        self.original = (height, width)
        self.corner = (top, left)
