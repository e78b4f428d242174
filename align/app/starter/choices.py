# pyright: basic
"""What `align init` writes into a recipe, each value with the reason that stands beside it.

The rules are ours, the rates of published runs: full fine-tuning 5e-7 (Zephyr, arXiv:2310.16944) to
1e-6 (DPO, arXiv:2305.18290), LoRA 5e-6 (Zephyr's QLoRA recipe); that small models and few steps
want more is a guess.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.app.check import rows_of_pairs
from align.app.cost import Machine
from align.app.memory import count_parameters, estimate_memory
from align.app.starter.text import Line
from align.objectives import Objective
from align.policies.model import Model
from align.recipe import Data, Recipe, Roles, Train
from align.recipe.schemas import description_of
from align.registry import is_path
from align.tokens.tokenized_pair import TokenizedPair
from align.types import ROLES

# Parameters below which all weights are trained in float32 wherever that fits.
TOY = 20_000_000
# Of the memory that is free, what a choice may take by the estimate.
ROOM = 0.7
# Share of the pairs that max_length keeps.
KEPT = 0.99
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True)
class Here:
    """This machine.

    Attributes:
        cores: of the CPU.
        gpu: its name; None without one.
        free: bytes of memory that training could take.
        has_bfloat16: whether the GPU computes in it; a CPU does.
        has_4bit: whether bitsandbytes is installed.
    """

    cores: int
    gpu: str | None
    free: int
    has_bfloat16: bool
    has_4bit: bool

    @classmethod
    def now(cls) -> Here:
        """As it is at this moment."""
        has_gpu = torch.cuda.is_available()
        return cls(
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            gpu=torch.cuda.get_device_name() if has_gpu else None,
            free=Machine.here(Path.cwd()).free_memory,
            has_bfloat16=not has_gpu or torch.cuda.is_bf16_supported(),
            has_4bit=importlib.util.find_spec("bitsandbytes") is not None,
        )

    def __str__(self) -> str:
        """For people."""
        on = f"{self.gpu}, " if self.gpu else "no GPU, "
        return f"{self.cores} CPU cores, {on}{self.free / 1e9:.1f} GB free"


@dataclass(frozen=True)
class Fit:
    """How the weights are trained: the keys of `model`, and of `train` that go with them."""

    model: Mapping[str, Any]
    why: Mapping[str, str]
    rate: float
    why_rate: str
    checkpointing: bool


def chosen_length(totals: Sequence[int], context: int, of: str = "pairs") -> tuple[int, str]:
    """`max_length` and its reason.

    Args:
        totals: tokens of every pair's prompt with the longer completion.
        context: tokens that the model takes.
        of: what is counted, in the plural.
    """
    ranked = sorted(totals)
    enough = ranked[math.ceil(KEPT * len(ranked)) - 1]
    found = min(next((n for n in LENGTHS if n >= enough), enough), context)
    kept = sum(total <= found for total in totals)
    why = f"keeps {kept / len(totals):.1%} of {len(totals)} {of}; the longest has {ranked[-1]}"
    return found, why + (" (the model's context)" if found == context else "")


def fit_weights(
    wish: Model, config: Any, objective: Objective, pairs: Sequence[TokenizedPair], here: Here
) -> Fit:
    """All weights, an adapter, or an adapter on 4-bit weights: the first that fits.

    Args:
        wish: names the model.
        config: of it.
        objective: the formula.
        pairs: tokenised, as they are trained on.
        here: the machine.
    """
    total = count_parameters(_recipe(wish, objective, Train()), config).total
    half = "bfloat16" if here.has_bfloat16 else "float32"
    rows = rows_of_pairs(pairs)
    last: Fit | None = None
    for kind in _kinds(total, here):
        keys: dict[str, Any] = {"dtype": "float32" if kind == "full" else half}
        if kind != "full":
            keys |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32}
            keys["lora_target_modules"] = ("all-linear",)
        if kind == "4-bit":
            keys |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
        for checkpointing in (False, True):
            train = Train(gradient_checkpointing=checkpointing, per_device_train_batch_size=4)
            recipe = _recipe(wish.model_copy(update=keys), objective, train)
            needed = estimate_memory(recipe, rows, count_parameters(recipe, config), config).total
            last = Fit(
                keys, _why(kind, total, here), *_rate(kind, total, wish.is_world), checkpointing
            )
            if needed <= ROOM * here.free:
                return last
    assert last is not None
    return last


def _recipe(model: Model, objective: Objective, train: Train) -> Recipe:
    roles = dict.fromkeys([role for role in ROLES if role in objective.needs], "start")
    return Recipe(
        model=model,
        roles=Roles(**roles),
        data=Data(pairs="rows"),
        objective=objective,
        train=train,
    )


def _kinds(total: int, here: Here) -> Iterator[str]:
    if total <= TOY or here.gpu:
        yield "full"
    if total > TOY:
        yield "adapter"
        if here.has_4bit:
            yield "4-bit"


def _why(kind: str, total: int, here: Here) -> dict[str, str]:
    where = "the GPU" if here.gpu else "this machine's memory"
    if kind == "full":
        return {"dtype": "all weights are trained; small steps vanish in bfloat16"}
    full = f"all {total / 1e6:,.0f}M weights would not fit {where}"
    if not here.gpu:
        full = "on a CPU all weights take twice the time"
    why = {
        "dtype": "of the frozen weights; the adapter is float32",
        "use_peft": f"LoRA: {full}",
        "lora_r": "rank; more learns more and takes more memory",
        "lora_alpha": "twice the rank, as is usual",
        "lora_target_modules": "every linear layer but the head",
    }
    if not here.has_bfloat16:
        why["dtype"] = "this GPU has no bfloat16"
    if kind == "4-bit":
        why["load_in_4bit"] = f"QLoRA: the 16-bit weights would not fit {where}"
        why["use_bnb_nested_quant"] = "0.4 bit per weight less"
    return why


def _rate(kind: str, total: int, is_world: bool) -> tuple[float, str]:
    if is_world:
        return 1e-4, "what the built-in models bear"
    if kind == "full":
        if total < 1e9:
            return 2e-6 if total > TOY else 1e-5, "published: 5e-7 (7B) to 1e-6; more where small"
        return 5e-7, "Zephyr's, full fine-tuning of 7B"
    if total < 1e9:
        return 2e-4, "small model, few steps: a guess; Zephyr's 7B adapter took 5e-6"
    return (2e-5, "LoRA of a few billion") if total < 5e9 else (5e-6, "Zephyr's QLoRA recipe")


def role_lines(objective: Objective, *, in_loop: bool) -> list[Line]:
    """The frozen policies that a formula asks for."""
    of_loop = {"previous": "round_start", "earlier": "previous_round", "anchor": "round_start"}
    why = {
        "reference": "the policy before training; the formula pulls towards it",
        "previous": "the policy that sampled the pairs",
        "earlier": "the policy a round before that",
        "guide": "name a trained policy here: with `start` this is plain DPO",
        "anchor": "the proximal anchor",
    }
    return [
        Line(role, of_loop.get(role, "start") if in_loop else "start", why[role])
        for role in ROLES
        if role in objective.needs
    ]


def objective_lines(objective: Objective) -> list[Line]:
    """The formula with its hyper-parameters, which are its defaults."""
    is_own = is_path(objective.name)
    why = "your own formula" if is_own else f"`align recipe explain objective.{objective.name}`"
    lines = [Line("name", objective.name, why)]
    for name in type(objective).model_fields:
        if name != "name":
            lines.append(
                Line(name, getattr(objective, name), description_of(type(objective), name))
            )
    return lines


def train_lines(fit: Fit, pairs: int, longest: int, here: Here) -> list[Line]:
    """The `train` section for so many pairs (of a loop: of a round)."""
    batch = next((b for most, b in ((200, 8), (2_000, 16), (20_000, 32)) if pairs < most), 64)
    batch = min(batch, pairs)
    epochs = 3 if pairs < 1_000 else 1
    steps = math.ceil(pairs / batch) * epochs
    logging = max(1, steps // 20)
    budget: int | str = "auto" if here.gpu else max(2_048, 2 ** math.ceil(math.log2(4 * longest)))
    why_budget = "what fits is found out" if here.gpu else "bounds the memory of one forward pass"
    checkpointing = "less memory, a fifth slower" if fit.checkpointing else "the memory suffices"
    return [
        Line("learning_rate", fit.rate, fit.why_rate),
        Line("lr_scheduler_type", "cosine", "falls to 0"),
        Line("warmup_steps", 0.1, "share of the steps"),
        Line("num_train_epochs", epochs, f"{steps} steps over {pairs} pairs"),
        Line("per_device_train_batch_size", batch, "pairs of an optimizer step, on each device"),
        Line("token_budget", budget, why_budget),
        Line("gradient_checkpointing", fit.checkpointing, checkpointing),
        Line("logging_steps", logging, "about 20 lines in all"),
        Line("save_steps", max(1, steps // 4), "a killed run goes on from the newest checkpoint"),
        Line("save_total_limit", 2, "older checkpoints go"),
        Line("seed", 0, "the same seed gives the same run"),
    ]
