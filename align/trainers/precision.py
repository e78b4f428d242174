# pyright: basic
"""What type weights are trained in: adapters in float32, and no weights that cannot move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from align.policies.precision import LOW, median_magnitude, refuse_rate, steps_by_the_rate

# torch's own optimizers whose step is about the learning rate, where one is given ready.
BY_THE_RATE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adafactor", "Lion")


@contextmanager
def unrounded_adapters(model: Any) -> Iterator[None]:
    """Around TRL's constructor, which rounds the adapter of a quantised model to bfloat16.

    The QLoRA paper (arXiv:2305.14314, section 3) computes in bfloat16; with weights of 8 bits a
    step of 5e-6 is lost on three quarters of A. An adapter that is there keeps its weights, to the
    last bit.
    """
    given = {}
    if isinstance(model, torch.nn.Module):
        given = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in getattr(model, "named_parameters", dict)():
        if name in given and parameter.dtype != given[name].dtype:
            parameter.data = given[name].to(parameter.device)


def adapter_in_float32(model: Any) -> None:
    """Widens what TRL rounded of an adapter that it made itself on a quantised model."""
    if not _is_quantised(model):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in LOW:
            parameter.data = parameter.data.float()


def refuse_weights_that_stay(trainer: Any) -> None:
    """Refuses 16-bit weights with a learning rate that cannot move them.

    Not where there are copies in float32: DeepSpeed keeps them, and accelerate widens sharded
    weights under mixed precision.

    Raises:
        RecipeError: with what to write instead.
    """
    mixed = trainer.accelerator.mixed_precision != "no"
    if trainer.is_deepspeed_enabled or (trainer.is_fsdp_enabled and mixed):
        return
    args, optimizer = trainer.args, trainer.optimizer
    if optimizer is None:
        name = str(getattr(args.optim, "value", args.optim))
        by_the_rate = steps_by_the_rate(name, args.optim_args)
        rate = args.learning_rate
    else:
        by_the_rate = type(optimizer).__name__ in BY_THE_RATE
        rate = max(group["lr"] for group in optimizer.param_groups)
    if not by_the_rate:
        return
    for dtype in LOW:
        trained = [p for p in trainer.model.parameters() if p.requires_grad and p.dtype == dtype]
        if trained:
            refuse_rate(float(rate), median_magnitude(trained), dtype)


def _is_quantised(model: Any) -> bool:
    return getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
