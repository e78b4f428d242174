"""What a training run costs, estimated without weights: tokens, steps, memory, disk.

Parameters are counted on a model built on torch's meta device. The estimates, in bytes:

    weights      parameters x width of their type; 8-bit 1; 4-bit 0.5 + 4/64 (a float32 scale per 64
                 weights), nested 0.5 + 1/64 + 4/(64 x 256) (Dettmers et al., arXiv:2305.14314)
    gradients    trained parameters x width of their type
    optimizer    trained parameters x states of the optimizer x width of a state
    activations  tokens x layers x 34 x hidden, twice that in float32 (Korthikanti et al.,
                 arXiv:2205.05198, eq. 2, without attention scores); with gradient checkpointing
                 tokens x hidden x width per layer, and the full figure for one layer
    logits       scored tokens x vocabulary x 2 float32, logits and gradient, of one chunk of the
                 LM head at most
    tokens       of the longest pairs (or groups) that make a device's batch, the prompt of each
                 once; at most the token budget, unless one is longer. A model that cannot share
                 prompts computes each one for every completion, and padding

Frozen roles are scored before training and cached, so they take no memory beside the policy. The
exception is a reference whose whole distributions an objective compares with the policy's, unless
it is the policy without what its adapter has learned.
"""

from __future__ import annotations

import math
import shutil
import statistics
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from align.forest.head import CHUNK
from align.policies.loading import reads_images
from align.recipe import KindRecipe, Recipe, Train
from align.reference import START
from align.stages.training import adapter_of
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4

# States per parameter and bytes of one; None is the parameter's own type. Factored and low-rank
# optimizers keep next to nothing; who is not named counts as Adam.
_OPTIMIZER_STATES: dict[str, tuple[int, float | None]] = {
    "sgd": (0, None),
    "adafactor": (0, None),
    "lomo": (0, None),
    "adalomo": (0, None),
    "adagrad": (1, None),
    "rmsprop": (1, None),
    "schedule_free_sgd": (1, None),
    "rmsprop_bnb": (1, 4),
    "rmsprop_bnb_32bit": (1, 4),
    "rmsprop_bnb_8bit": (1, 1),
    "lion_32bit": (1, 4),
    "paged_lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "paged_lion_8bit": (1, 1),
    "adamw_torch_4bit": (2, 0.5),
    "adamw_torch_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "adamw_bnb_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "paged_adamw_32bit": (2, 4),
    "ademamix": (3, 4),
    "paged_ademamix_32bit": (3, 4),
    "ademamix_8bit": (3, 1),
    "paged_ademamix_8bit": (3, 1),
}
_ADAM = (2, None)


@dataclass(frozen=True)
class Machine:
    """What is free here, in bytes.

    Attributes:
        free_disk: where the run will lie.
        free_memory: of a device.
        memory_of: that device, in words.
        program: what this process, which holds no weights, takes of that memory.
    """

    free_disk: int
    free_memory: int
    memory_of: str
    program: int = 0

    @classmethod
    def here(cls, run: Path, *, use_cpu: bool = False) -> Machine:
        """This machine, with the disk that `run` will lie on."""
        existing = next(
            folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists()
        )
        if torch.cuda.is_available() and not use_cpu:
            free, memory_of, program = torch.cuda.mem_get_info()[0], "the GPU", 0
        else:
            free, memory_of = psutil.virtual_memory().available, "this machine"
            program = psutil.Process().memory_info().rss
        return cls(shutil.disk_usage(existing).free, free, memory_of, program)


@dataclass(frozen=True)
class Lengths:
    """Lengths of one part of all rows, in tokens; `p95` is the nearest rank."""

    minimum: int
    median: float
    p95: int
    maximum: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The statistics of at least one length."""
        ranked = sorted(lengths)
        p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
        return cls(ranked[0], statistics.median(ranked), p95, ranked[-1])

    def __str__(self) -> str:
        return f"min {self.minimum}, median {self.median:g}, p95 {self.p95}, max {self.maximum}"


@dataclass(frozen=True)
class Parameters:
    """How many parameters the policy has: all, trained ones, its adapter's, quantised ones."""

    total: int
    trained: int
    adapter: int
    quantised: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while training."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Disk:
    """Bytes in the run's folder and the caches, at their most."""

    checkpoint: int
    checkpoints: int
    model: int
    caches: int

    @property
    def total(self) -> int:
        """All of it; `checkpoints` counts those kept at once."""
        return self.checkpoint * self.checkpoints + self.model + self.caches


def optimizer_steps(train: Train, pairs: int, processes: int) -> int:
    """Optimizer steps of a whole run, as transformers counts them."""
    if train.max_steps > 0:
        return train.max_steps
    per_batch = train.per_device_train_batch_size * processes
    batches = pairs // per_batch if train.dataloader_drop_last else math.ceil(pairs / per_batch)
    per_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    return math.ceil(train.num_train_epochs * per_epoch)


def count_parameters(
    recipe: Recipe | KindRecipe, model_config: PreTrainedConfig, *, classifier: bool = False
) -> Parameters:
    """Parameters of the policy with its adapter, counted on the meta device.

    Args:
        recipe: its `model` section.
        model_config: of the policy.
        classifier: with a head of one output in place of the LM head.
    """
    with torch.device("meta"), warnings.catch_warnings():
        # peft 0.21 reads names whose end transformers 5.23 announces.
        warnings.simplefilter("ignore", FutureWarning)
        kind: Any = AutoModelForCausalLM
        if reads_images(model_config):
            kind = AutoModelForImageTextToText
        if classifier:
            kind = AutoModelForSequenceClassification
            model_config = deepcopy(model_config)
            model_config.num_labels = 1
        model = kind.from_config(
            model_config,
            attn_implementation="eager",
            trust_remote_code=recipe.model.trust_remote_code,
        )
        total = sum(p.numel() for p in model.parameters())
        quantised = 0
        if recipe.model.load_in_4bit or recipe.model.load_in_8bit:
            head = model.get_output_embeddings()
            linear = (m for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
            quantised = sum(layer.weight.numel() for layer in linear)
        if not recipe.model.use_peft:
            return Parameters(total=total, trained=total, adapter=0, quantised=0)
        task = "SEQ_CLS" if classifier else "CAUSAL_LM"
        adapted = get_peft_model(model, adapter_of(recipe.model, task))
        adapter = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Parameters(total=total + adapter, trained=adapter, adapter=adapter, quantised=quantised)


def loaded_width(recipe: Recipe | KindRecipe, model_config: PreTrainedConfig) -> int:
    """Bytes of a weight as it is loaded."""
    if recipe.model.dtype != "auto":
        return _WIDTH[recipe.model.dtype]
    saved = str(getattr(model_config, "dtype", None)).removeprefix("torch.")
    return _WIDTH.get(saved, _FLOAT32)


def _trained_bytes(
    recipe: Recipe | KindRecipe, parameters: Parameters, model_config: PreTrainedConfig
) -> int:
    # peft keeps an adapter in float32 under half-precision weights.
    width = _FLOAT32 if recipe.model.use_peft else loaded_width(recipe, model_config)
    return parameters.trained * width


def _optimizer_bytes(recipe: Recipe | KindRecipe, parameters: Parameters, trained: int) -> int:
    states, width = _OPTIMIZER_STATES.get(recipe.train.optim, _ADAM)
    return states * (trained if width is None else math.ceil(parameters.trained * width))


def estimate_memory(
    recipe: Recipe,
    pairs: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
) -> Memory:
    """Bytes that training takes on one device; the module's docstring holds the formulas."""
    sizes = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    memory = training_memory(recipe, batch_tokens(recipe, sizes), parameters, model_config)
    if "divergence" not in recipe.objective.vocabulary:
        return memory
    if recipe.model.use_peft and recipe.roles.given.get("reference", START) == START:
        return memory
    # A second model, whose distributions are compared with the policy's.
    second = (parameters.total - parameters.adapter) * loaded_width(recipe, model_config)
    return replace(memory, weights=memory.weights + second)


def batch_tokens(recipe: Recipe, sizes: Sequence[int]) -> int:
    """Tokens of the fullest forward pass of training.

    Args:
        recipe: its `train` section.
        sizes: tokens of each row, a prompt once.
    """
    longest = sorted(sizes, reverse=True)
    tokens = sum(longest[: recipe.train.per_device_train_batch_size])
    if isinstance(recipe.train.token_budget, int):
        tokens = min(tokens, max(recipe.train.token_budget, longest[0]))
    return tokens


def training_memory(
    recipe: Recipe | KindRecipe,
    tokens: int,
    parameters: Parameters,
    model_config: PreTrainedConfig,
    *,
    outputs: int | None = None,
) -> Memory:
    """Bytes that training on a batch takes on one device.

    Args:
        recipe: its `model` and `train` sections.
        tokens: of one forward pass, padding included.
        parameters: of the model.
        model_config: likewise.
        outputs: per token; None means the vocabulary.
    """
    config = model_config.get_text_config()
    width = loaded_width(recipe, model_config)
    frozen_in_bits = 0.0
    if recipe.model.load_in_4bit:
        scales = 1 / 64 + 4 / (64 * 256) if recipe.model.use_bnb_nested_quant else 4 / 64
        frozen_in_bits = parameters.quantised * (0.5 + scales)
    elif recipe.model.load_in_8bit:
        frozen_in_bits = float(parameters.quantised)
    plain = parameters.total - parameters.quantised - parameters.adapter
    trained = _trained_bytes(recipe, parameters, model_config)
    half = width == 2 or recipe.train.bf16 or recipe.train.fp16
    value = 2 if half else _FLOAT32
    layer = 34 * config.hidden_size * value // 2
    per_token = config.num_hidden_layers * layer
    if recipe.train.gradient_checkpointing:
        per_token = config.num_hidden_layers * config.hidden_size * value + layer
    return Memory(
        weights=math.ceil(frozen_in_bits) + plain * width + parameters.adapter * _FLOAT32,
        gradients=trained,
        optimizer=_optimizer_bytes(recipe, parameters, trained),
        activations=tokens * per_token,
        logits=min(tokens * (outputs or config.vocab_size), CHUNK) * 2 * _FLOAT32,
    )


def estimate_disk(
    recipe: Recipe,
    rows: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
    steps: int,
) -> Disk:
    """Bytes of checkpoints kept at once, the finished model, tokenised pairs and role scores."""
    completions = sum(len(row.chosen_ids) + len(row.rejected_ids) for row in rows)
    prompts = sum(len(row.prompt_ids) for row in rows)
    caches = cached_bytes(recipe, prompts, completions)
    return run_disk(recipe, parameters, model_config, steps, caches)


def cached_bytes(recipe: Recipe, prompts: int, completions: int) -> int:
    """Bytes of tokenised rows, and of the scores of roles.

    Args:
        recipe: its objective and roles.
        prompts: tokens of all prompts.
        completions: tokens of all completions.
    """
    sources = {s for r, s in recipe.roles.given.items() if r in recipe.objective.needs}
    return 8 * (prompts + completions) + _FLOAT32 * completions * len(sources)


def run_disk(
    recipe: Recipe | KindRecipe,
    parameters: Parameters,
    model_config: PreTrainedConfig,
    steps: int,
    caches: int,
) -> Disk:
    """Bytes of checkpoints kept at once and of the finished model, beside those of the caches."""
    train: Train = recipe.train
    model = _trained_bytes(recipe, parameters, model_config)
    optimizer = 0 if train.save_only_model else _optimizer_bytes(recipe, parameters, model)
    match train.save_strategy:
        case "no":
            saves = 0
        case "epoch":
            saves = math.ceil(train.num_train_epochs)
        case _:
            every = (
                train.save_steps if train.save_steps >= 1 else math.ceil(train.save_steps * steps)
            )
            saves = math.ceil(steps / every)  # the last step is always saved
    # The new checkpoint is whole before the oldest goes.
    kept = saves if train.save_total_limit is None else min(saves, train.save_total_limit + 1)
    return Disk(
        checkpoint=model + optimizer,
        checkpoints=kept,
        model=model,
        caches=caches,
    )
