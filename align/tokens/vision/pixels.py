"""What a vision-language model reads beside token ids, for a batch of rows that show pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.data.images import Degraded, open_image
from align.data.problems import RowProblem
from align.errors import DataError, RecipeError
from align.forest.padded import Pictures
from align.tokens.vision.columns import Shown
from align.tokens.vision.degrade import degrade, degrade_patches

if TYPE_CHECKING:
    from transformers import ProcessorMixin

GRID = "image_grid_thw"


class PixelReader:
    """Pictures and where they stand, as the model's forward pass takes them.

    Args:
        processor: of the model.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor: Any = processor

    def __call__(self, rows: Sequence[Shown], input_ids: Tensor) -> dict[str, Tensor]:
        """Inputs of one forward pass, beside its token ids.

        Args:
            rows: what each row of the pass shows.
            input_ids: [R, S] the rows' tokens.

        Raises:
            DataError: a picture cannot be read.
            RecipeError: pictures of this processor cannot be degraded, or it is not supported.
        """
        shown = [(row, n, ref) for row in rows for n, ref in enumerate(row.images)]
        if not shown:
            return {}
        try:
            images = [[open_image(ref) for ref in row.images] for row in rows]
        except RowProblem as problem:
            raise DataError(f"A picture of this batch is gone: {problem.detail}.") from problem
        found = self._pixels([some for some in images if some])
        for at, (row, n, _) in enumerate(shown):
            if row.degraded is not None:
                self._degrade(found, at, row.degraded, n)
        if getattr(self.processor, "return_mm_token_type_ids", False):
            kinds = self.processor.create_mm_token_type_ids(input_ids.tolist())
            # Gemma 3's model has a name of its own for them.
            own = _is_of(self.processor, "Gemma3Processor")
            name = "token_type_ids" if own else "mm_token_type_ids"
            found[name] = torch.tensor(kinds, dtype=torch.long)
        return found

    def _pixels(self, images: list[list[Any]]) -> dict[str, Any]:
        """Without text: padding would leave its mark in the tokenizer, and in its digest."""
        processor = self.processor
        if not _is_of(processor, "Gemma"):
            return dict(processor(images=images, return_tensors="pt"))
        # These write a text where there is none.
        found: Any = processor.image_processor(images, return_tensors="pt")
        return {k: v for k, v in found.items() if k not in processor.unused_input_names}

    def _degrade(self, found: dict[str, Any], at: int, degraded: Degraded, number: int) -> None:
        """Degrades picture `at` of the batch in place."""
        pixels: Tensor = found["pixel_values"]
        if GRID in found:
            patches = found[GRID].prod(dim=1)
            end = int(patches[: at + 1].sum())
            own = slice(end - int(patches[at]), end)
            processor = self.processor.image_processor
            channels = 3 * processor.temporal_patch_size
            pixels[own] = degrade_patches(pixels[own], degraded, number, channels=channels)
        elif pixels.dim() == 4:
            pixels[at] = degrade(pixels[at], degraded, number)
        else:
            raise RecipeError(
                f"{type(self.processor).__name__} cuts a picture into tiles of its own; degraded "
                "pictures are made for LLaVA's and Qwen-VL's layouts only."
            )


def _is_of(processor: Any, family: str) -> bool:
    return any(kind.__name__.startswith(family) for kind in type(processor).__mro__)


def pictures_of(processor: Any, shown: Sequence[Shown]) -> Pictures | None:
    """What `align.forest.score_rows` asks for, of rows that show these; None where none does."""
    if not any(row.images for row in shown):
        return None
    reader = PixelReader(processor)
    return lambda numbers, input_ids: reader([shown[n] for n in numbers], input_ids)
