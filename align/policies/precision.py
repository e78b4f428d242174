"""Whether a learning rate can move weights at all in the type that they are trained in.

An Adam step is about the learning rate, whatever the gradient. A weight w of p significant bits
takes up no step below half of its last place, which lies between |w| 2^-(p+1) and |w| 2^-p: for
bfloat16 |w| / 512 at the least, for float16 |w| / 4096. Below that step the sum is rounded back to
w, in every step alike, so nothing adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from align.errors import RecipeError
from align.policies.model import Model

LOW = (torch.bfloat16, torch.float16)
# Weights looked at; the median of so many is known to a tenth of a percent.
SAMPLE = 2**22
# Optimizers whose step is about the learning rate, and that keep no copy of 16-bit weights.
STEP_IS_THE_RATE = frozenset(
    {
        "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused",
        "adamw_apex_fused", "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit",
        "adafactor", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
        "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_adamw",
        "lion", "lion_8bit", "lion_32bit", "paged_lion", "paged_lion_32bit", "paged_lion_8bit",
        "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "schedule_free_radam",
        "schedule_free_adamw", "galore_adamw", "galore_adamw_8bit",
    }
)  # fmt: skip
# What these add makes small steps count.
MADE_UP_FOR = ("kahan", "stochastic_round")


def steps_by_the_rate(optim: str, optim_args: str | None) -> bool:
    """Whether an optimizer, by transformers' name, moves each weight by about the learning rate."""
    added = str(optim_args or "").lower()
    return optim in STEP_IS_THE_RATE and not any(word in added for word in MADE_UP_FOR)


def median_magnitude(weights: Iterable[Tensor]) -> float:
    """Median of |w| over all weights, or over every k-th where there are many."""
    flat = [weight.detach().reshape(-1) for weight in weights]
    every = max(1, math.ceil(sum(weight.numel() for weight in flat) / SAMPLE))
    return float(torch.cat([weight[::every].abs().float().cpu() for weight in flat]).median())


def least_rate(median: float, dtype: torch.dtype) -> float:
    """The rate below which more than half of the weights of this median stay where they are."""
    return torch.finfo(dtype).eps / 4 * median


def refuse_rate(rate: float, median: float, dtype: torch.dtype) -> None:
    """Refuses a learning rate that cannot move the weights. A rate of 0 means what it says.

    Args:
        rate: the peak learning rate.
        median: of |w| over the trained weights of this type.
        dtype: of 16 bits.

    Raises:
        RecipeError: with what to write instead.
    """
    least = least_rate(median, dtype)
    if not 0 < rate < least:
        return
    name, part = str(dtype).removeprefix("torch."), round(4 / torch.finfo(dtype).eps)
    raise RecipeError(
        f"train.learning_rate: {rate:g} cannot move weights that are trained in {name}. An Adam "
        f"step is about the learning rate, and a {name} weight w takes up none below |w| / {part}: "
        f"with a median |w| of {median:.3g}, more than half of them would stay exactly where they "
        f"are below a rate of {least:.2g}. Keep the weights in float32 and compute in bfloat16: "
        "`dtype: float32` under model and `bf16: true` under train (on several cards with FSDP2, "
        "which shards them). Or train an adapter (`use_peft: true`), which is kept in float32, or "
        "write a larger rate."
    )


def refuse_rate_of(
    model: Model, train: Any, folder: str, config: PreTrainedConfig, *, classifier: bool = False
) -> None:
    """The same before anything is loaded, from a sample of the weights on disk.

    Args:
        model: the `model` section.
        train: the `train` section.
        folder: folder or hub id of the start policy; nothing is fetched, and nothing is said of
            weights that are not here.
        config: of the start policy.
        classifier: whether a classifier is made of it, which has no LM head.

    Raises:
        RecipeError: the learning rate cannot move the weights.
    """
    dtype = config.dtype if model.dtype == "auto" else getattr(torch, model.dtype)
    if model.use_peft or dtype not in LOW or not steps_by_the_rate(train.optim, train.optim_args):
        return
    sample = list(_sample(model, folder, classifier))
    if sample:
        refuse_rate(train.learning_rate, median_magnitude(sample), dtype)


def _sample(model: Model, folder: str, classifier: bool) -> Iterator[Tensor]:
    """Some rows from the middle of each matrix, as many of a hundred as of every other."""
    if not Path(folder).is_dir():
        try:
            folder = snapshot_download(
                folder,
                revision=model.model_revision,
                local_files_only=True,
                allow_patterns="*.safetensors",
            )
        except LocalEntryNotFoundError:
            return
    shapes: dict[tuple[Path, str], list[int]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if not (classifier and name.startswith("lm_head.")):
                    shapes[file, name] = opened.get_slice(name).get_shape()
    share = min(1.0, SAMPLE / max(1, sum(math.prod(shape) for shape in shapes.values())))
    for (file, name), shape in shapes.items():
        rows = max(1, round(shape[0] * share)) if shape else 0
        first = (shape[0] - rows) // 2 if shape else 0
        with safe_open(file, framework="pt") as opened:
            weight = opened.get_slice(name)[first : first + rows] if rows else None
        if weight is not None and weight.is_floating_point():
            yield weight
