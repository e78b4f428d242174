"""Rows to the batch of one device: pairs laid out for as many forward passes as fit the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.forest import Backend, TokenRow
from align.reference import score_columns
from align.tokens.vision.columns import sides_in
from align.tokens.vision.pixels import PixelReader
from align.types import PAIR_KINDS, ROLES

SCALARS = ("chosen_score", "rejected_score", "preference")
PAIR_KIND = "pair_kind"
TOKEN_WEIGHTS = ("chosen_token_weight", "rejected_token_weight")
ROLE_COLUMNS = tuple(column for role in ROLES for column in score_columns(role))


@dataclass(frozen=True)
class PreferenceCollator:
    """Lays B pairs out for forward passes of at most `token_budget` tokens each.

    A batch holds `row_index` [B] and `parts`, one per forward pass over b of its pairs: `place` [b]
    of the pairs in the batch, their `row_index` [b] and `tokens` [b] (both rows together), `pack`
    (2b rows: chosen, then rejected) and, for columns that the rows carry, `chosen_score`,
    `rejected_score`, `preference` [b], token weights and role log-probs [b, T] per side, in
    float32, `pair_kind` [b] in int64; with `pixels`, `pictures` is what the model reads of them.

    Attributes:
        backend: how pairs are laid out.
        token_budget: tokens of one forward pass at most, as the backend counts them; None means
            the whole batch at once.
        pixels: reads the pictures of rows that show some; None for a model of text.
    """

    backend: Backend
    token_budget: int | None = None
    pixels: PixelReader | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of the rows of `examples`."""
        chosen, rejected = (
            [TokenRow(example["prompt_ids"], example[side]) for example in examples]
            for side in ("chosen_ids", "rejected_ids")
        )
        parts: list[dict[str, Any]] = []
        for pairs in self.backend.cut(list(zip(chosen, rejected, strict=True)), self.token_budget):
            rows = [side[pair] for side in (chosen, rejected) for pair in pairs]
            part = {
                "place": torch.tensor(pairs),
                "tokens": torch.tensor([len(chosen[p]) + len(rejected[p]) for p in pairs]),
                "pack": self.backend.lay_out(rows),
            }
            if self.pixels is not None:
                sides = zip(*(sides_in(examples[pair]) for pair in pairs), strict=True)
                shown = [row for side in sides for row in side]
                part["pictures"] = self.pixels(shown, part["pack"].input_ids)
            parts.append(part | _columns([examples[pair] for pair in pairs]))
        return {"row_index": torch.tensor([e["row_index"] for e in examples]), "parts": parts}


def _columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    present = examples[0].keys()
    columns = {"row_index": torch.tensor([example["row_index"] for example in examples])}
    for name in SCALARS:
        if name in present:
            columns[name] = torch.tensor([e[name] for e in examples], dtype=torch.float32)
    if PAIR_KIND in present:
        kinds = [PAIR_KINDS.index(example[PAIR_KIND]) for example in examples]
        columns[PAIR_KIND] = torch.tensor(kinds)
    for name in (*TOKEN_WEIGHTS, *ROLE_COLUMNS):
        if name in present:
            values = [torch.tensor(example[name], dtype=torch.float32) for example in examples]
            columns[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    return columns
