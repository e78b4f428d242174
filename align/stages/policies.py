# pyright: basic
"""Policies of a loop: whole models or adapters, loaded from an artefact or still in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedTokenizerBase

from align.loops.stage import StageContext
from align.policies.fetched import folder_of
from align.policies.loading import load_policy, will_shard
from align.policies.merged import whole_folder
from align.policies.model import Model
from align.policies.quantization import keep_gradients_on_cpu
from align.policies.start import AdapterOff, Start, wears_the_start
from align.recipe import DataRecipe, Recipe
from align.reference import Identity
from align.worlds import world


def policy_folder(model: Model) -> str:
    """Folder or hub id of the start policy; one that is built or fetched is so on the first call.

    Of a run it is the model that the run left, of an adapter the one that stands on its base.

    Raises:
        RecipeError: the run that it names has left no model.
        MachineError: it cannot be fetched, or an adapter's base cannot be loaded.
    """
    if not model.is_world:
        return whole_folder(model, folder_of(model.model_name_or_path))
    return str(world(model.model_name_or_path).base_model())


def load_round_policy(
    recipe: Recipe | DataRecipe, folder: Path, start: str, *, trainable: bool
) -> Any:
    """The policy in an artefact's folder: a whole model, or an adapter on the start policy.

    Args:
        recipe: its `model` section says how weights are loaded.
        folder: of the artefact.
        start: folder or hub id of the policy that the loop began with.
        trainable: whether an adapter is loaded to be trained on.
    """
    is_start = folder == Path(start)
    if is_start or not (folder / "adapter_config.json").is_file():
        return load_whole(recipe.model, start if is_start else str(folder), trainable=trainable)
    return load_adapted(recipe.model, folder, start, trainable=trainable)


def load_whole(section: Model, folder: str, *, trainable: bool = False) -> Any:
    """A whole model from a folder or hub id, where `_placed` puts it."""
    model: Any = load_policy(section, folder)
    keep_gradients_on_cpu(model)
    return _placed(model, model, trainable)


def load_adapted(section: Model, adapter: Path, base: str, *, trainable: bool) -> Any:
    """The adapter in a folder on its base, where `_placed` puts it.

    Args:
        section: how the base's weights are loaded.
        adapter: the folder.
        base: folder or hub id of the base.
        trainable: whether the adapter is loaded to be trained on.
    """
    whole: Any = load_policy(section, base)
    keep_gradients_on_cpu(whole)
    model: Any = PeftModel.from_pretrained(whole, str(adapter), is_trainable=trainable)
    keep_types(model, adapter)
    return _placed(model, whole, trainable)


def start_beside(
    recipe: Recipe | DataRecipe, start: str, identity: Identity | None, policy: Any
) -> Start:
    """The start policy, for a policy to be compared with; an adapter on it lends its own base.

    Args:
        recipe: its `model` section says how weights are loaded.
        start: folder or hub id.
        identity: who it is, where that is known.
        policy: in memory; None where nothing is, or a base of another start.
    """

    def load() -> Any:
        if wears_the_start(policy, start):
            return AdapterOff(policy)
        return load_round_policy(recipe, Path(start), start, trainable=False)

    return Start(identity, load)


def keep_types(model: Any, folder: Path) -> None:
    """Gives an adapter's weights the types they were saved in.

    peft loads them in float32 where TRL trains them in bfloat16, on a quantised base: what is
    loaded would answer otherwise than what was saved.
    """
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        saved = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    for name, parameter in model.named_parameters():
        own = name.replace(".modules_to_save.default.", ".").replace(".default", "")
        if saved.get(own) == "BF16":
            parameter.data = parameter.data.to(torch.bfloat16)


def _placed(model: Any, base: Any, trainable: bool) -> Any:
    """On this process's device; what will be sharded stays where it is until then."""
    is_placed = getattr(base, "hf_device_map", None) is not None  # quantised weights stay there
    return model if is_placed or (trainable and will_shard()) else model.to(PartialState().device)


@contextlib.contextmanager
def borrowed_policy(
    context: StageContext, recipe: Recipe | DataRecipe, start: str
) -> Iterator[Any]:
    """The newest policy, from memory where it is there; given back unchanged afterwards."""
    model = context.take("policy")
    if model is None:
        model = load_round_policy(recipe, context.input("policy"), start, trainable=True)
    yield model
    context.put_back("policy", model)


def save_policy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: dict[str, Any] | None = None,
) -> None:
    """Weights (an adapter's alone where there is one), tokenizer, and how to sample from it.

    Args:
        model: the policy.
        tokenizer: its.
        folder: where to.
        state: its weights, where the model has only a share of them.
    """
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    if not (folder / "adapter_config.json").is_file():
        # `transformers serve` heeds a request's temperature only where this is set.
        config = GenerationConfig.from_pretrained(folder)
        if not config.do_sample:
            config.do_sample = True
            config.save_pretrained(folder)
    else:
        _fix_order(folder / "adapter_config.json")


def _fix_order(path: Path) -> None:
    """Sorts the lists of words: peft writes sets, whose order differs between processes."""
    config = json.loads(path.read_text())
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def unpatched(model: Any) -> Any:
    """The model with the forward pass of its class, as it was before a trainer wrapped it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in (model, base):
        for name in ("forward", "_original_forward"):
            module.__dict__.pop(name, None)
    # Gradient checkpointing hooks the embeddings, each trainer anew.
    base.get_input_embeddings()._forward_hooks.clear()
    return model.eval()


def update_average(average: Any, newest: Any, decay: float) -> None:
    """`average` <- decay * average + (1 - decay) * newest, in the average's own type."""
    theirs = dict(newest.named_parameters())
    with torch.no_grad():
        for name, parameter in average.named_parameters():
            parameter.lerp_(theirs[name].to(parameter), 1 - decay)
