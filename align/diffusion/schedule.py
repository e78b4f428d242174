"""The optimizer, and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import Parameter

from align.diffusion.settings import DiffusionTrain


def adamw(train: DiffusionTrain, parameters: Sequence[Parameter]) -> torch.optim.AdamW:
    """AdamW over what is trained."""
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
    )


def learning_rate(train: DiffusionTrain, step: int) -> float:
    """Of the update after `step` updates: a linear rise, then constant, or down to 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    share = (step - train.warmup_steps) / (train.max_steps - train.warmup_steps)
    match train.lr_scheduler_type:
        case "constant":
            return train.learning_rate
        case "linear":
            return train.learning_rate * (1 - share)
        case "cosine":
            return train.learning_rate * (1 + math.cos(math.pi * share)) / 2
