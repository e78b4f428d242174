# pyright: basic
"""What a forward and backward pass takes beside the weights, traced on tensors without data.

A model of the recipe's shape with two layers and one with four are built of fake tensors (torch's
`FakeTensorMode`) and trained on the fullest pass of the data, and the storages that are alive are
summed up. What differs between the two is what a layer takes; the rest is the embedding, the head
and what lives for a moment. Both are true of any number of layers. No weight is made, so a model of
70 billion parameters is traced in seconds.

torch's own `MemTracker` hooks the gradient of every parameter, which frozen ones do not have, and
so cannot see an adapter's training.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import weakref
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM

from align.forest.attention import attending
from align.forest.backends import PADDED, TREE, TREE_VARLEN, Backend, refused
from align.forest.model import add_edge_head, read_pack
from align.forest.pack import Pack
from align.forest.rows import TokenRow
from align.policies.loading import reads_images
from align.recipe import Recipe
from align.stages.training import adapter_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

# Fewest that tell what a layer takes from what is there once, past what the first and the last
# layer of a stack have to themselves.
FEW, MORE = 2, 4


@dataclass(frozen=True)
class Moment:
    """Bytes beside the weights at the fullest moment of a pass.

    Attributes:
        gradients: of trained weights that exist at that moment.
        layers: activations of all layers.
        rest: embedding, head, and what lives for a moment only.
    """

    gradients: int
    layers: int
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.layers + self.rest


def traced(
    recipe: Recipe,
    units: Sequence[Sequence[TokenRow]],
    model_config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    autocast: torch.dtype | None,
    on_cuda: bool,
) -> Moment | None:
    """The fullest moment of training on a device's batch; None where no trace can be made.

    Args:
        recipe: its `model` and `train` sections.
        units: the rows of each unit (pair, group) of the largest batch.
        model_config: of the policy.
        dtype: the type that frozen and whole weights are loaded in, 4-bit ones computed in.
        autocast: the 16-bit type of mixed precision, or None.
        on_cuda: lay rows out and attend as on a GPU.
    """
    if reads_images(model_config) or not units:
        return None
    layers = _kept_layers(recipe, model_config)
    try:
        with _quietly():
            few = _moments(recipe, units, model_config, dtype, min(FEW, layers), autocast, on_cuda)
            more = _moments(
                recipe, units, model_config, dtype, min(MORE, layers), autocast, on_cuda
            )
    except Exception as error:
        # A model's own code may read values, which tensors without data do not have.
        logger.info("no trace of %s: %s", type(model_config).__name__, error)
        return None
    apart = min(MORE, layers) - min(FEW, layers)
    beyond = layers - min(MORE, layers)

    def extrapolated(one: _Peak, other: _Peak) -> Moment:
        per_layer = (other.held - one.held) / apart if apart else 0.0
        of_gradients = (other.gradients - one.gradients) / apart if apart else 0.0
        held = other.held + beyond * per_layer
        in_layers = max(per_layer, 0.0) * layers
        return Moment(
            gradients=round(other.gradients + beyond * of_gradients),
            layers=round(in_layers),
            rest=round(held - in_layers),
        )

    # Either moment grows by so much with each layer; which is the fuller one hangs on their number.
    return max(map(extrapolated, few, more), key=lambda moment: moment.total)


@dataclass(frozen=True)
class _Peak:
    gradients: int
    held: int
    """Beside weights and gradients."""


class _Watch(TorchDispatchMode):
    """Sums up the storages that are alive, and what they were at their most since `begin`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._trained = [p for p in model.parameters() if p.requires_grad]
        # torch's own: it stands for an object without asking it whether it equals another.
        self._known: Any = WeakIdKeyDictionary()
        self.alive = 0
        self.begin()
        for tensor in (*model.parameters(), *model.buffers()):
            self._see(tensor)
        self._weights = self.alive

    def begin(self) -> _Peak:
        """The peak until now; a new one begins."""
        before = getattr(self, "peak", _Peak(0, 0))
        self.peak, self._most = _Peak(0, 0), -1
        return before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        if self.alive > self._most:
            gradients = sum(p.grad.nbytes for p in self._trained if p.grad is not None)
            self._most = self.alive
            self.peak = _Peak(gradients, self.alive - self._weights - gradients)
        return result

    def _see(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self.alive += size
            self._known[storage] = weakref.finalize(storage, self._gone, size)
        return tensor

    def _gone(self, size: int) -> None:
        self.alive -= size


def _moments(
    recipe: Recipe,
    units: Sequence[Sequence[TokenRow]],
    model_config: PreTrainedConfig,
    dtype: torch.dtype,
    layers: int,
    autocast: torch.dtype | None,
    on_cuda: bool,
) -> tuple[_Peak, _Peak]:
    """The peaks before and after the gradient enters the layers."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = _filled(_shaped(recipe, model_config, layers), fake, dtype)
    backend = _backend(model, autocast or dtype, on_cuda)
    budget = recipe.train.token_budget
    cuts = backend.cut(units, budget if isinstance(budget, int) else None)
    packs = [backend.lay_out([row for u in cut for row in units[u]]) for cut in cuts]
    pack = _fake(max(packs, key=lambda one: one.computed_tokens), fake)
    accumulates = len(cuts) > 1 or recipe.train.gradient_accumulation_steps > 1
    watch = _Watch(model)
    peaks: list[_Peak] = []

    def entered(gradient: Any) -> None:
        del gradient
        peaks.append(watch.begin())

    def left(module: Any, args: Any, output: Any) -> None:
        del module, args
        output.last_hidden_state.register_hook(entered)

    language = model.get_base_model() if recipe.model.use_peft else model
    language.base_model.register_forward_hook(left)
    with fake, watch:
        for _ in range(2 if accumulates else 1):
            watch.begin()
            with (
                _mixed(autocast),
                attending(model, pack.implementation),
            ):
                logps: Any = read_pack(model, pack).logps
            with attending(model, pack.implementation):
                pack.rows(0, pack.index.shape[0], logps).total().sum().backward()
            del logps
    return peaks[-1], watch.peak


def _mixed(dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype, cache_enabled=False)


def _kept_layers(recipe: Recipe, model_config: PreTrainedConfig) -> int:
    """Layers whose activations the backward pass reads: from the lowest adapter upwards."""
    layers: int = model_config.get_text_config().num_hidden_layers
    adapted = recipe.model.lora_layers_to_transform
    if not recipe.model.use_peft or not adapted:
        return layers
    return max(layers - min(adapted), 1)


def _shaped(recipe: Recipe, model_config: PreTrainedConfig, layers: int) -> Any:
    """The policy with so many layers, on the meta device."""
    config = deepcopy(model_config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:layers]
    kind: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(
            config,
            attn_implementation="sdpa",
            trust_remote_code=recipe.model.trust_remote_code,
        )
        if recipe.model.use_peft:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        add_edge_head(model)
        if recipe.train.gradient_checkpointing:
            asked = recipe.train.gradient_checkpointing_kwargs or {"use_reentrant": False}
            model.gradient_checkpointing_enable(asked)
            if recipe.model.use_peft:
                model.enable_input_require_grads()
        if recipe.model.use_peft:
            adapter = adapter_of(recipe.model)
            adapter.layers_to_transform = None
            model = get_peft_model(model, adapter)
    model.train()
    return model


def _filled(model: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> Any:
    """The same model on a device, its tensors without data; an adapter stays in float32."""
    convert = fake.fake_tensor_converter.from_meta_and_device
    cpu = torch.device("cpu")
    done: dict[int, nn.Parameter] = {}
    adapted = any("lora_" in name for name, _ in model.named_parameters())
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in done:
                keeps = adapted and old.requires_grad
                empty = torch.empty_like(old, dtype=torch.float32 if keeps else dtype)
                done[id(old)] = nn.Parameter(convert(fake, empty, cpu), old.requires_grad)
            module._parameters[name] = done[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(fake, torch.empty_like(buffer, device="meta"), cpu)
    return model


def _backend(model: Any, computed_in: torch.dtype, on_cuda: bool) -> Backend:
    if refused(model) is not None:
        return PADDED
    return TREE_VARLEN if on_cuda and computed_in.itemsize == 2 else TREE


def _fake(pack: Pack, fake: FakeTensorMode) -> Pack:
    """The same pack of tensors without data."""

    def turned(value: Any) -> Any:
        return fake.from_tensor(value) if torch.is_tensor(value) else value

    tree = None if pack.tree is None else _with(pack.tree, turned)
    return type(pack)(**{k: turned(v) for k, v in vars(pack).items() if k != "tree"}, tree=tree)


def _with(tree: Any, turned: Any) -> Any:
    return type(tree)(**{name: turned(value) for name, value in vars(tree).items()})


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
