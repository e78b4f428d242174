"""Images side by side, as one PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

MARGIN = 2  # pixels between two images
GREY = 128
SMALLEST = 48  # pixels of a side; smaller images are enlarged, each pixel a square


def save_grid(images: np.ndarray, path: Path, columns: int | None = None) -> None:
    """Writes N images in rows.

    Args:
        images: [N, H, W, 3] uint8, N at least 1.
        path: of the PNG.
        columns: images in a row; None makes the grid as square as can be.
    """
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    scale = max(1, -(-SMALLEST // min(height, width)))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale + MARGIN, width * scale + MARGIN
    sheet = np.full((rows * height + MARGIN, columns * width + MARGIN, 3), GREY, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * height + MARGIN, (index % columns) * width + MARGIN
        sheet[top : top + height - MARGIN, left : left + width - MARGIN] = image
    Image.fromarray(sheet).save(path)
