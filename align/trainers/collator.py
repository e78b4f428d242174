"""Rows to the batch of one device: laid out for as many forward passes as fit the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from align.forest import Backend
from align.tokens.vision.pixels import PixelReader
from align.trainers.pair_kind import PAIRS
from align.trainers.row_kind import RowKind


@dataclass(frozen=True)
class PreferenceCollator:
    """Lays B rows out for forward passes of at most `token_budget` tokens each.

    A batch holds `row_index` [B], `sizes` [B], how many losses each row has, and `parts`, one per
    forward pass over b of its rows: `place` [b] of the rows in the batch, their `row_index`,
    `sizes` and `tokens` [b] (all completions together), `pack` and the columns that the rows carry;
    with `pixels`, `pictures` is what the model reads of them.

    Attributes:
        backend: how rows are laid out.
        token_budget: tokens of one forward pass at most, as the backend counts them; None means
            the whole batch at once.
        pixels: reads the pictures of rows that show some; None for a model of text.
        kind: what a row is.
        measured: what a row is to the passes that measure a step, where that is something else;
            a batch then holds these as `measured`.
    """

    backend: Backend
    token_budget: int | None = None
    pixels: PixelReader | None = None
    kind: RowKind[Any] = PAIRS
    measured: RowKind[Any] | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of the rows of `examples`."""
        apart = {} if self.measured is None else {"measured": self.parts(examples, self.measured)}
        return {
            "row_index": torch.tensor([example["row_index"] for example in examples]),
            "sizes": torch.tensor([self.kind.losses(example) for example in examples]),
            "parts": self.parts(examples, self.kind),
            **apart,
        }

    def parts(
        self, examples: Sequence[Mapping[str, Any]], kind: RowKind[Any]
    ) -> list[dict[str, Any]]:
        """The forward passes over the rows of `examples`, read as `kind`."""
        units = [kind.unit(example) for example in examples]
        parts: list[dict[str, Any]] = []
        for numbers in self.backend.cut(units, self.token_budget):
            rows = [examples[number] for number in numbers]
            pack = self.backend.lay_out(kind.in_order([units[number] for number in numbers]))
            part = {
                "place": torch.tensor(numbers),
                "row_index": torch.tensor([row["row_index"] for row in rows]),
                "sizes": torch.tensor([kind.losses(row) for row in rows]),
                "tokens": torch.tensor([kind.tokens(row) for row in rows]),
                "pack": pack,
            }
            if self.pixels is not None:
                shown = kind.in_order([kind.shown(row) for row in rows])
                part["pictures"] = self.pixels(shown, pack.input_ids)
            parts.append(part | kind.columns(rows))
        return parts
