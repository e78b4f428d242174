# pyright: basic
"""From a recipe and tokenised rows to a trained policy on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProcessorMixin,
    ProgressCallback,
    Trainer,
    set_seed,
)

from align.errors import Interrupted
from align.policies.loading import load_policy, will_shard
from align.policies.quantization import keep_gradients_on_cpu
from align.policies.start import Start, start_identity
from align.recipe import Model, Recipe, Train
from align.runs.folder import RunFolder
from align.runs.manifest import publish
from align.runs.versions import versions
from align.stages.policies import load_round_policy, start_beside, unpatched
from align.stages.trained_rows import rows_for
from align.trainers.config import PreferenceConfig
from align.trainers.progress import TrainingProgress
from align.trainers.sharding import save_whole

# (policy, the start policy, which may be that very model) -> metrics
Evaluation = Callable[[PreTrainedModel, Start], dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """What a finished training run measured."""

    before: dict[str, Any]
    after: dict[str, Any]
    log_history: list[dict[str, Any]]
    probe: dict[str, float] | None
    roles: dict[str, dict[str, str]]
    versions: dict[str, str]
    forward: dict[str, Any]


def adapter_of(model: Model, task: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM") -> Any:
    """The LoRA configuration of a recipe's `model` section, or None for full fine-tuning.

    Args:
        model: the section.
        task: peft's word; of a classifier the head is trained and saved beside the adapter.
    """
    if not model.use_peft:
        return None

    def chosen(names: tuple[str, ...] | None) -> Any:
        if names is None:
            return None
        return names[0] if names == ("all-linear",) else list(names)

    return LoraConfig(
        task_type=task,
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=chosen(model.lora_target_modules),
        target_parameters=chosen(model.lora_target_parameters),
        layers_to_transform=(
            None if model.lora_layers_to_transform is None else list(model.lora_layers_to_transform)
        ),
        modules_to_save=chosen(model.lora_modules_to_save),
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
    )


def training_arguments(
    recipe: Recipe, folder: Path, allow_change: Collection[str], *, seed: int | None = None
) -> PreferenceConfig:
    """The trainer's configuration for a recipe; bf16 left open means: on where CUDA has it.

    Args:
        recipe: its `train` and `data` sections.
        folder: of the checkpoints.
        allow_change: settings that may differ from the checkpoint that is resumed from.
        seed: in place of the recipe's own.
    """
    arguments = arguments_here(recipe.train)
    if seed is not None:
        arguments["seed"] = seed
    return PreferenceConfig(
        output_dir=str(folder),
        allow_change=list(allow_change),
        max_length=recipe.data.max_length,
        token_budget=recipe.train.token_budget,
        forest_backend=recipe.train.forest_backend,
        **arguments,
    )


def arguments_here(train: Train) -> dict[str, Any]:
    """The keywords for TRL's configuration, with what this machine says about those left open."""
    arguments = train.arguments()
    if arguments["bf16"] is None:
        arguments["bf16"] = (
            not train.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        )
    if not torch.accelerator.is_available():
        # Said outright, because several processes find each other over gloo only then.
        arguments["use_cpu"] = True
    if not torch.cuda.is_available():
        # Pinned memory is memory that a GPU can read; without one torch warns.
        arguments["dataloader_pin_memory"] = False
    return arguments


def quieten(trainer: Trainer) -> None:
    """Our own progress in place of transformers' and its printed logs."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingProgress())


def train_policy(
    recipe: Recipe,
    run: RunFolder,
    folder: str,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    train: Dataset,
    held_out: Dataset | None,
    evaluation: Evaluation,
    *,
    allow_change: Collection[str] = (),
) -> Trained:
    """Trains, or goes on training, and leaves the finished model in `run.model`.

    Args:
        recipe: its `model`, `roles`, `objective` and `train` sections.
        run: where checkpoints and the model go.
        folder: folder or hub id of the start policy.
        tokenizer: the start policy's, or its processor where it reads pictures.
        train: tokenised pairs or groups, as `align.stages.trained_rows` makes their table.
        held_out: the same, for evaluations during training.
        evaluation: called on the start policy and on the finished one, on the main process.
        allow_change: settings that may differ from the checkpoint that is resumed from.

    Raises:
        Interrupted: a signal ended training; the same call goes on from its checkpoint.
    """
    state = PartialState()
    set_seed(recipe.train.seed)
    model: Any = load_policy(recipe.model, folder)
    # Before anything is measured: the 4-bit repacking happens in the first forward pass.
    keep_gradients_on_cpu(model)
    shards = will_shard()
    before: dict[str, Any] = {}
    identity = None
    if state.is_main_process:
        if recipe.evaluate.needs_pairs:
            # Now, while the files are those that were loaded.
            identity = start_identity(recipe.model, folder, tokenizer)
        # A model that is sharded in training need not fit onto one device.
        placed = model if shards and not recipe.evaluate.suite else model.to(state.device)
        before = run.read_json("before.json") or evaluation(
            placed, Start.in_memory(model, identity)
        )
        run.write_json("before.json", before)
    state.wait_for_everyone()
    reader: Any = tokenizer
    trainer = rows_for(recipe.objective).trainer(
        model,
        args=training_arguments(recipe, run.checkpoints, allow_change),
        train_dataset=train,
        eval_dataset=held_out if recipe.train.eval_strategy != "no" else None,
        processing_class=reader,
        peft_config=adapter_of(recipe.model),
        objective=recipe.objective,
        roles={
            role: source
            for role, source in recipe.roles.given.items()
            if role in recipe.objective.needs
        },
    )
    quieten(trainer)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopped_by is not None:
        raise Interrupted(
            f"Stopped by {trainer.stopped_by} at step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; a checkpoint is in {run.checkpoints}. Run the same "
            "command again to go on."
        )
    policy = unpatched(trainer.model)
    # Before it is measured, so that nothing that goes wrong there costs the training.
    partial = run.path / "model.partial"
    if state.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    save_whole(trainer, partial)
    if state.is_main_process:
        tokenizer.save_pretrained(partial)
        # peft's own card; ours is written beside the sealed files once the metrics are there.
        (partial / "README.md").unlink(missing_ok=True)
        publish(partial, run.model, {"versions": versions(), "step": trainer.state.global_step})
    trained = Trained(
        before=before,
        after={},
        log_history=trainer.state.log_history,
        probe=trainer.probe,
        roles={role: who.to_json() for role, who in trainer.identities.items()},
        versions=versions(),
        forward={
            "backend": trainer.backend.backend.name,
            "reason": trainer.backend.reason,
            "token_budget": trainer.data_collator.token_budget,
        },
    )
    # Gradients and the optimizer's states would lie beside the evaluation's own memory.
    del trainer, model
    if shards:
        del policy
    clear_device_cache(garbage_collection=True)
    if state.is_main_process:
        if shards:
            # The shards in memory answer only to all processes together.
            policy = load_round_policy(recipe, run.model, folder, trainable=False)
        start = start_beside(recipe, folder, identity, policy)
        trained = replace(trained, after=evaluation(policy, start))
    state.wait_for_everyone()
    return trained
