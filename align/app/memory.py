"""What a policy takes of a device's memory while it is trained, estimated without weights.

Parameters are counted on a model built on torch's meta device. In bytes, on each device:

    weights      parameters x width of their type; 8-bit 1; 4-bit 0.5 + 4/64 (a float32 scale per 64
                 weights), nested 0.5 + 1/64 + 4/(64 x 256) (Dettmers et al., arXiv:2305.14314)
    gradients    trained parameters x width of their type
    optimizer    trained parameters x states of the optimizer x width of a state; with ZeRO another
                 4 of the float32 copy that it keeps of 16-bit weights
    activations  of all layers, and
    head         what does not grow with layers: LM head, embedding, what lives for a moment; both
                 traced on tensors without data (`align.app.tracing`), or by formula (below) for
                 toys and where that cannot be
    buckets      a second copy of the gradients, in which DDP adds them up over devices
    gathered     under FSDP and ZeRO-3: the weights of two layers, of embedding and head, and the
                 gradient of the largest of these, whole
    context      what CUDA, and NCCL beside it, take for themselves; assumed

By formula: tokens x layers x 34 x hidden, twice that in float32 (Korthikanti et al.,
arXiv:2205.05198, eq. 2, without attention scores); with gradient checkpointing tokens x hidden x
width per layer, and the full figure for one layer. The head: scored tokens x vocabulary x 2
float32, logits and gradient, of one chunk at most.

Sharding divides by the number of devices: gradients and optimizer under ZeRO-2, the weights too
under FSDP and ZeRO-3. Frozen roles are scored before training and cached, so they take no memory
beside the policy. The exception is a reference whose whole distributions an objective compares with
the policy's, unless it is the policy without what its adapter has learned.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from align.app.launch import ALONE, Launch
from align.app.tracing import Moment, traced
from align.forest.head import CHUNK
from align.forest.rows import TokenRow
from align.policies.loading import reads_images
from align.recipe import KindRecipe, Recipe
from align.reference import START
from align.stages.training import adapter_of

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

# Parameters of a model for which a trace, some seconds, would last longer than it is worth.
TOY = 20_000_000

_DTYPE = {2: torch.bfloat16, 4: torch.float32}
# Assumed, not measured: CUDA's kernels and workspaces, and NCCL's channels.
_CONTEXT, _NCCL = 800_000_000, 1_000_000_000


@dataclass(frozen=True)
class Parameters:
    """How many parameters the policy has: all, trained ones, its adapter's, quantised ones."""

    total: int
    trained: int
    adapter: int
    quantised: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while training; the module's docstring says what they are."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    buckets: int = 0
    gathered: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


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


def trained_bytes(
    recipe: Recipe | KindRecipe, parameters: Parameters, model_config: PreTrainedConfig
) -> int:
    """Of the trained weights."""
    # peft keeps an adapter in float32 under half-precision weights.
    width = _FLOAT32 if recipe.model.use_peft else loaded_width(recipe, model_config)
    return parameters.trained * width


def optimizer_bytes(recipe: Recipe | KindRecipe, parameters: Parameters, trained: int) -> int:
    """Of the optimizer's states beside `trained` bytes of weights."""
    states, width = _OPTIMIZER_STATES.get(recipe.train.optim, _ADAM)
    return states * (trained if width is None else math.ceil(parameters.trained * width))


def weight_bytes(
    recipe: Recipe | KindRecipe, parameters: Parameters, model_config: PreTrainedConfig
) -> int:
    """Of all weights, the adapter's among them."""
    in_bits = 0.0
    if recipe.model.load_in_4bit:
        scales = 1 / 64 + 4 / (64 * 256) if recipe.model.use_bnb_nested_quant else 4 / 64
        in_bits = parameters.quantised * (0.5 + scales)
    elif recipe.model.load_in_8bit:
        in_bits = float(parameters.quantised)
    plain = parameters.total - parameters.quantised - parameters.adapter
    width = loaded_width(recipe, model_config)
    return math.ceil(in_bits) + plain * width + parameters.adapter * _FLOAT32


def estimate_memory(
    recipe: Recipe,
    units: Sequence[Sequence[TokenRow]],
    parameters: Parameters,
    model_config: PreTrainedConfig,
    launch: Launch = ALONE,
) -> Memory:
    """Bytes that training takes on one device.

    Args:
        recipe: its `model` and `train` sections.
        units: the rows of each unit (pair, group) of the data; the longest are a batch.
        parameters: of the model.
        model_config: likewise.
        launch: the devices, and what is split over them.
    """
    train = recipe.train
    on_cuda = torch.cuda.is_available() and not train.use_cpu
    on_cuda = on_cuda if launch.on_cuda is None else launch.on_cuda
    longest = sorted(units, key=_computed, reverse=True)[: train.per_device_train_batch_size]
    half = computes_in(recipe, on_cuda=on_cuda)
    loaded = _DTYPE[loaded_width(recipe, model_config)]
    # FSDP and DeepSpeed hold weights of the type that is computed in; autocast makes that of
    # float32 ones.
    in_type, autocast = (half or loaded, None) if launch.split == "weights" else (loaded, half)
    seen = None
    if parameters.total > TOY:
        seen = traced(recipe, longest, model_config, in_type, autocast=autocast, on_cuda=on_cuda)
    tokens = batch_tokens(recipe, [_computed(unit) for unit in longest])
    plain = training_memory(recipe, tokens, parameters, model_config)
    if seen is None:
        seen = Moment(plain.gradients, plain.activations, plain.head)
    # Where one device holds all gradients, those count that are there at the fullest moment.
    gradients = seen.gradients if launch.processes == 1 else plain.gradients
    optimizer = plain.optimizer
    if launch.keeps_float32 and loaded.itemsize == 2 and not recipe.model.use_peft:
        optimizer += parameters.trained * _FLOAT32
    return Memory(
        weights=(plain.weights + _second(recipe, parameters, model_config)) // launch.weight_parts,
        gradients=gradients // launch.gradient_parts,
        optimizer=optimizer // launch.gradient_parts,
        activations=seen.layers,
        head=seen.rest,
        buckets=plain.gradients if launch.processes > 1 and launch.split == "nothing" else 0,
        gathered=(
            _gathered(recipe, parameters, model_config, half or loaded)
            if launch.split == "weights"
            else 0
        ),
        context=(_CONTEXT + (_NCCL if launch.processes > 1 else 0)) if on_cuda else 0,
    )


def _second(recipe: Recipe, parameters: Parameters, model_config: PreTrainedConfig) -> int:
    """Of a model in memory whose distributions are compared with the policy's."""
    if "divergence" not in recipe.objective.vocabulary:
        return 0
    if recipe.model.use_peft and recipe.roles.given.get("reference", START) == START:
        return 0
    return (parameters.total - parameters.adapter) * loaded_width(recipe, model_config)


def computes_in(recipe: Recipe | KindRecipe, *, on_cuda: bool) -> torch.dtype | None:
    """The 16-bit type of mixed precision; None where there is none."""
    train = recipe.train
    if train.fp16:
        return torch.float16
    # As transformers decides where nothing is said: in bfloat16 where the device can.
    mixed = train.bf16 if train.bf16 is not None else on_cuda
    return torch.bfloat16 if mixed else None


def _computed(unit: Sequence[TokenRow]) -> int:
    """Tokens of rows of one prompt, which counts once."""
    return len(unit[0].prompt_ids) + sum(len(row.completion_ids) for row in unit)


def _gathered(
    recipe: Recipe, parameters: Parameters, model_config: PreTrainedConfig, dtype: torch.dtype
) -> int:
    config = model_config.get_text_config()
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    total = parameters.total - parameters.adapter
    of_layers = weight_bytes(recipe, parameters, model_config) - (
        ends * loaded_width(recipe, model_config)
    )
    if parameters.quantised == 0:
        of_layers = (total - ends) * dtype.itemsize
    gradient = 0 if recipe.model.use_peft else ends * dtype.itemsize
    return 2 * of_layers // config.num_hidden_layers + ends * dtype.itemsize + gradient


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
    """Bytes that training on a batch takes on one device, by formula.

    Args:
        recipe: its `model` and `train` sections.
        tokens: of one forward pass, padding included.
        parameters: of the model.
        model_config: likewise.
        outputs: per token; None means the vocabulary.
    """
    config = model_config.get_text_config()
    width = loaded_width(recipe, model_config)
    trained = trained_bytes(recipe, parameters, model_config)
    half = width == 2 or recipe.train.bf16 or recipe.train.fp16
    value = 2 if half else _FLOAT32
    layer = 34 * config.hidden_size * value // 2
    per_token = config.num_hidden_layers * layer
    if recipe.train.gradient_checkpointing:
        per_token = config.num_hidden_layers * config.hidden_size * value + layer
    return Memory(
        weights=weight_bytes(recipe, parameters, model_config),
        gradients=trained,
        optimizer=optimizer_bytes(recipe, parameters, trained),
        activations=tokens * per_token,
        head=min(tokens * (outputs or config.vocab_size), CHUNK) * 2 * _FLOAT32,
    )
