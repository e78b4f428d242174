"""Rows to the padded batch that `trl.DPOTrainer` knows: first half chosen, second half rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.forest import TokenRow, pad_rows
from align.reference import ROLES, score_columns

SCALARS = ("chosen_score", "rejected_score", "preference")
TOKEN_WEIGHTS = ("chosen_token_weight", "rejected_token_weight")
ROLE_COLUMNS = tuple(column for role in ROLES for column in score_columns(role))


@dataclass(frozen=True)
class PreferenceCollator:
    """Pads B pairs to the batch that `trl.DPOTrainer` knows.

    A batch holds `row_index` [B]; `input_ids`, `attention_mask`, `completion_mask` [2B, S]; and,
    for columns that the rows carry, `chosen_score`, `rejected_score`, `preference` [B], token
    weights and role log-probs [B, T] per side, in float32.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch of the rows of `examples`."""
        rows = [
            TokenRow(example["prompt_ids"], example[side])
            for side in ("chosen_ids", "rejected_ids")
            for example in examples
        ]
        batch = {"row_index": torch.tensor([example["row_index"] for example in examples])}
        batch |= pad_rows(rows, self.pad_token_id)
        present = examples[0].keys()
        for name in SCALARS:
            if name in present:
                batch[name] = torch.tensor(
                    [example[name] for example in examples], dtype=torch.float32
                )
        for name in (*TOKEN_WEIGHTS, *ROLE_COLUMNS):
            if name in present:
                values = [torch.tensor(example[name], dtype=torch.float32) for example in examples]
                batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        return batch


def within_budget(batch: Mapping[str, Tensor], token_budget: int | None) -> list[dict[str, Tensor]]:
    """Cuts a batch into parts of similar lengths, each of at most `token_budget` padded tokens.

    A pair longer than the budget gets a part of its own. Padding that a part does not need is cut
    away.
    """
    if token_budget is None:
        return [dict(batch)]
    pairs = batch["row_index"].numel()
    width = batch["attention_mask"].sum(dim=1).view(2, pairs).amax(dim=0).tolist()
    parts: list[list[int]] = []
    for pair in sorted(range(pairs), key=lambda b: -width[b]):
        # The first pair of a part is its longest.
        if parts and 2 * (len(parts[-1]) + 1) * width[parts[-1][0]] <= token_budget:
            parts[-1].append(pair)
        else:
            parts.append([pair])
    return [_part(batch, part) for part in parts]


def _part(batch: Mapping[str, Tensor], pairs: list[int]) -> dict[str, Tensor]:
    total = batch["row_index"].numel()
    index = torch.tensor(pairs, device=batch["row_index"].device)
    rows = torch.cat([index, index + total])
    part = {
        name: tensor[rows if tensor.shape[0] == 2 * total else index]
        for name, tensor in batch.items()
    }
    positions = int(part["attention_mask"].sum(dim=1).max())
    chosen, rejected = part["completion_mask"].sum(dim=1).view(2, -1).amax(dim=1).tolist()
    for name in ("input_ids", "attention_mask", "completion_mask"):
        part[name] = part[name][:, :positions]
    for name in (*TOKEN_WEIGHTS, *ROLE_COLUMNS):
        if name in part:
            part[name] = part[name][:, : chosen if "chosen" in name else rejected]
    return part
