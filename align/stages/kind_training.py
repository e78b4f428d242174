# pyright: basic
"""From a recipe of one of the kinds and its rows to a trained model on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from transformers import set_seed

from align.errors import Interrupted
from align.policies.classifiers import describe, load_classifier, new_classifier
from align.policies.loading import load_policy, will_shard
from align.policies.quantization import keep_gradients_on_cpu
from align.recipe import KindRecipe
from align.runs.folder import RunFolder
from align.runs.manifest import publish
from align.runs.versions import versions
from align.stages.policies import load_round_policy, unpatched
from align.stages.training import adapter_of, arguments_here, quieten
from align.tokens.whole_rows import ONE_ANSWER, TWO_ANSWERS
from align.trainers.kinds import kind_trainer
from align.trainers.sharding import save_whole

LAYOUT = {"reward": ONE_ANSWER, "preference_model": TWO_ANSWERS}

# A model -> JSON with `measures`, and whatever else is known of it.
Measuring = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class TrainedKind:
    """What a finished training run measured, before and after."""

    before: dict[str, Any]
    after: dict[str, Any]
    log_history: list[dict[str, Any]]


def start_model(recipe: KindRecipe, folder: str) -> Any:
    """The model that a recipe's training starts from: the policy, or a classifier made of it.

    Args:
        recipe: its `kind`, `model` section and seed, from which a new head is drawn.
        folder: folder or hub id of the start policy.
    """
    set_seed(recipe.train.seed)
    if recipe.kind != "sft":
        return new_classifier(recipe.model, folder)
    model = load_policy(recipe.model, folder)
    keep_gradients_on_cpu(model)
    return model


def train_kind(
    recipe: KindRecipe,
    run: RunFolder,
    folder: str,
    tokenizer: Any,
    train: Dataset,
    held_out: Dataset | None,
    measuring: Measuring,
    *,
    allow_change: Collection[str] = (),
) -> TrainedKind:
    """Trains, or goes on training, and leaves the finished model in `run.model`.

    Args:
        recipe: of the kind.
        run: where checkpoints and the model go.
        folder: folder or hub id of the start policy.
        tokenizer: the start policy's.
        train: rows as the kind's trainer takes them.
        held_out: the same, for evaluations during training.
        measuring: called on the start and on the finished model, on the main process.
        allow_change: settings that may differ from the checkpoint that is resumed from.

    Raises:
        Interrupted: a signal ended training; the same call goes on from its checkpoint.
    """
    state = PartialState()
    model = start_model(recipe, folder)
    before: dict[str, Any] = {}
    if state.is_main_process:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        before = run.read_json("before.json") or measuring(_placed(model, state))
        run.write_json("before.json", before)
    state.wait_for_everyone()
    trainer = kind_trainer(
        recipe.kind,
        model,
        folder=run.checkpoints,
        arguments=arguments_here(recipe.train),
        train=train,
        held_out=held_out if recipe.train.eval_strategy != "no" else None,
        tokenizer=tokenizer,
        adapter=adapter_of(recipe.model, "CAUSAL_LM" if recipe.kind == "sft" else "SEQ_CLS"),
        allow_change=allow_change,
    )
    quieten(trainer)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopped_by is not None:
        raise Interrupted(
            f"Stopped by {trainer.stopped_by} at step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; a checkpoint is in {run.checkpoints}. Run the same "
            "command again to go on."
        )
    trained: Any = unpatched(trainer.model)
    step, history = trainer.state.global_step, trainer.state.log_history
    # Before it is measured, so that nothing that goes wrong there costs the training.
    partial = run.path / "model.partial"
    if state.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    save_whole(trainer, partial)
    if state.is_main_process:
        tokenizer.save_pretrained(partial)
        if recipe.kind != "sft":
            describe(partial, recipe.kind, LAYOUT[recipe.kind], recipe.model)
        # peft's own card; ours is written beside the sealed files once the metrics are there.
        (partial / "README.md").unlink(missing_ok=True)
        publish(partial, run.model, {"versions": versions(), "step": step})
    # Gradients and the optimizer's states would lie beside the evaluation's own memory.
    del trainer, model
    if will_shard():
        del trained
    clear_device_cache(garbage_collection=True)
    after: dict[str, Any] = {}
    if state.is_main_process:
        # Shards in memory answer only to all processes together.
        finished = _finished(recipe, run, folder, state) if will_shard() else trained
        after = measuring(finished)
    state.wait_for_everyone()
    return TrainedKind(before, after, history)


def _finished(recipe: KindRecipe, run: RunFolder, start: str, state: PartialState) -> Any:
    """The trained model, from the disk."""
    if recipe.kind == "sft":
        section: Any = recipe
        return load_round_policy(section, run.model, start, trainable=False)
    model, _ = load_classifier(str(run.model), "model")
    return _placed(model, state)


def _placed(model: Any, state: PartialState) -> Any:
    # Quantised weights cannot be moved.
    return model if getattr(model, "hf_device_map", None) is not None else model.to(state.device)
