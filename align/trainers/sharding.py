# pyright: basic
"""Weights that FSDP2 shards over the processes: identified whole, sharded before roles are scored.

accelerate shards a model when training begins. Here it is sharded when the trainer is built, so
that roles, the start-up probe, training and evaluation all go through the same layers: a reference
scored by whole weights under autocast differs from the sharded ones under FSDP2's mixed precision
by 1.5e-3 nats in 16 bits, where the margin of step 0 must be 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from align.errors import RecipeError
from align.forest.head import EdgeLogps
from align.forest.model import add_edge_head
from align.reference import tensors_digest
from align.trainers.ranks import of_main


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether FSDP holds a share of each weight on each process."""
    return accelerator.distributed_type == DistributedType.FSDP


def is_zero3(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed's third stage does."""
    plugin: Any = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def refuse_unknown_sharding(accelerator: Accelerator, args: Any, roles: Sequence[str]) -> None:
    """Refuses what weights cannot be sharded with.

    Args:
        accelerator: of the processes.
        args: the trainer's.
        roles: the frozen policies that the objective reads.

    Raises:
        RecipeError: with what to write instead.
    """
    if shards_weights(accelerator) and not accelerator.is_fsdp2:
        raise RecipeError(
            "FSDP's first version flattens weights, and roles cannot be scored through it. Write "
            "`fsdp_version: 2` under fsdp_config, as in recipes/accelerate/fsdp2.yaml."
        )
    if shards_weights(accelerator) and args.torch_compile:
        raise RecipeError(
            "torch_compile and FSDP2 are not used together here: weights are sharded before the "
            "trainer compiles them. Take torch_compile out."
        )
    has_shards = shards_weights(accelerator) or accelerator.state.deepspeed_plugin is not None
    if has_shards and args.token_budget == "auto":
        raise RecipeError(
            "token_budget: auto tries passes on whole weights, and this launch shards them. "
            "Set a number of tokens."
        )
    if is_zero3(accelerator) and roles:
        raise RecipeError(
            f"roles.{roles[0]} is scored before training, and DeepSpeed's ZeRO-3 gathers its "
            "shards only in training. Launch with recipes/accelerate/fsdp2.yaml, which shards the "
            "same tensors, or with zero2.yaml where the weights fit onto one device."
        )


def whole_digest(model: nn.Module, accelerator: Accelerator, without: Sequence[str] = ()) -> str:
    """`align.reference.weights_digest`, whether the weights are sharded or not.

    To be called on all processes. The main one hashes: before sharding, it alone may have the
    weights at all (FSDP's `cpu_ram_efficient_loading`).

    Args:
        model: whose state.
        accelerator: of the processes.
        without: tensors with one of these in their name are left out.

    Raises:
        RecipeError: DeepSpeed has split the weights already.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise RecipeError(
            "ZeRO-3 has split the weights while they were loaded, and who the policy is cannot be "
            "told from one share. Write `zero3_init_flag: false`, as in "
            "recipes/accelerate/zero3.yaml."
        )
    state = sorted(model.state_dict().items())
    if accelerator.is_main_process:
        gathered = ((name, _whole(tensor)) for name, tensor in state)
        found = tensors_digest(gathered, len(state), without)
    else:
        found = ""
        for _, tensor in state:
            _whole(tensor)
    return of_main(accelerator, lambda: found)


def here(tensor: Any) -> Any:
    """This process's shard of a sharded tensor, in the same memory; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _whole(tensor: Any) -> Any:
    """A sharded tensor, gathered by all processes together; anything else as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_early(model: Any, accelerator: Accelerator, score: EdgeLogps) -> Any:
    """The model with an edge head, sharded as accelerate shards it; the same object.

    Args:
        model: whole, on any device.
        accelerator: of the processes.
        score: what computes log-probs from hidden states.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    add_edge_head(base, score)
    if isinstance(model, FSDPModule):
        return model
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    model = fsdp2_prepare_model(accelerator, model)
    head = base.get_output_embeddings()
    if isinstance(head, FSDPModule):
        # Scored edges read the head's weight and never call it. Where it shares its shards with the
        # layer before it (accelerate puts the last norm there), that one gathers it; elsewhere
        # nothing would, and a gradient of a gathered copy is not averaged over the processes.
        model.register_forward_pre_hook(lambda *_: head.unshard())
    return model


def forget_gathered(model: nn.Module) -> None:
    """Frees weights that passes without gradient left gathered.

    An optimizer that is built meanwhile would hold the gathered copies, which no pass reads again.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def sharded_beforehand(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Inside, `accelerator.prepare(model, optimizer)` takes the model as it is.

    accelerate 1.15 would look for the optimizer's parameters by their addresses, and empty shards
    (of an adapter of rank 1 on two processes, say) all have the address 0.
    """
    prepare = accelerator.prepare

    def prepared(*given: Any, **options: Any) -> Any:
        if len(given) == 2 and given[0] is model:
            known: Any = accelerator._models
            if not any(one is model for one in known):
                known.append(model)
            return model, accelerator.prepare_optimizer(given[1])
        return prepare(*given, **options)

    accelerator.prepare = prepared
    try:
        yield
    finally:
        del accelerator.prepare


def gathered_state(model: Any) -> dict[str, Any]:
    """A sharded model's weights on the CPU of the main process, nothing on the others.

    To be called on all processes. Of a model with an adapter, what is trained alone.
    """
    is_adapted = bool(is_peft_model(model))
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapted
    )
    return get_model_state_dict(model, options=options)


def state_to_save(trainer: Trainer) -> dict[str, Any] | None:
    """For `save_pretrained` on the main process; None where it finds whole weights itself.

    To be called on all processes.
    """
    model: Any = trainer.model
    return gathered_state(model) if shards_weights(trainer.accelerator) else None


def save_whole(trainer: Trainer, folder: str | Path) -> None:
    """Writes the model for `from_pretrained`, sharded or not; to be called on all processes.

    Args:
        trainer: whose model.
        folder: where to.
    """
    state = state_to_save(trainer)
    if trainer.accelerator.is_main_process:
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(folder, state_dict=state)
    trainer.accelerator.wait_for_everyone()
