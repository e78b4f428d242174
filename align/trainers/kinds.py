# pyright: basic
"""The trainer of each kind of recipe that has no objective."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from align.trainers.guarded import GuardedTrainer
from align.trainers.preference_model import PreferenceModelTrainer
from align.trainers.reward import RewardModelTrainer
from align.trainers.sft import ImitationTrainer

_TRAINERS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "reward": (RewardModelTrainer, RewardConfig),
    "preference_model": (PreferenceModelTrainer, RewardConfig),
    "sft": (ImitationTrainer, SFTConfig),
}


def kind_trainer(
    kind: str,
    model: Any,
    *,
    folder: Path,
    arguments: Mapping[str, Any],
    train: Dataset,
    held_out: Dataset | None,
    tokenizer: Any,
    adapter: Any,
    allow_change: Collection[str],
) -> GuardedTrainer:
    """The trainer of a kind.

    Args:
        kind: reward, preference_model or sft.
        model: the start; of a classifier with its head.
        folder: of the checkpoints.
        arguments: keywords of TRL's configuration.
        train: rows as that trainer takes them.
        held_out: the same, for evaluations during training; None for none.
        tokenizer: the start's; it can pad.
        adapter: peft's configuration, or None.
        allow_change: settings that may differ from the checkpoint that is resumed from.
    """
    trainer, config = _TRAINERS[kind]
    # Rows are cut where they are read, by the rules that every recipe has.
    args = config(output_dir=str(folder), max_length=None, **arguments)
    return trainer(
        model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=adapter,
        allow_change=allow_change,
    )
