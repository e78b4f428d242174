# pyright: basic
"""What a resumed run must have in common with the one that wrote the checkpoint."""

from __future__ import annotations

import json
from typing import Any

from datasets import IterableDataset
from transformers import Trainer

from align import registry
from align.reference import digest, rows_digest
from align.runs.versions import versions
from align.tokens.dataset import scored_columns
from align.trainers.base import TrainerBase

# The arguments that move a number; what is not here (logging, saving, folders) may change freely.
ARGUMENTS = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "max_length",
    "disable_dropout",
)


def run_settings(trainer: TrainerBase) -> dict[str, Any]:
    """Objective, rows, start policy, roles, adapter, arguments and versions, ready for JSON."""
    return {
        "objective": trainer.objective.model_dump(mode="json") | _own_code(trainer),
        "rows": _rows(trainer),
        "policy": trainer._start.to_json(),
        "roles": {role: identity.to_json() for role, identity in trainer.identities.items()},
        **trained_settings(trainer),
    }


def _rows(trainer: TrainerBase) -> str:
    table = trainer.train_dataset
    if isinstance(table, IterableDataset):
        return "a stream, whose rows are not known"
    columns = sorted({*scored_columns(table, trainer.scored_kind.ids), *trainer._optional_columns})
    return digest(rows_digest(table, [name]) for name in columns)


def trained_settings(trainer: Trainer) -> dict[str, Any]:
    """Adapter, arguments and versions of any trainer, ready for JSON."""
    args: Any = trainer.args
    adapters = getattr(trainer.model, "peft_config", None)
    return {
        "adapter": None
        if adapters is None
        else {
            name: json.loads(json.dumps(config.to_dict(), default=_plain))
            for name, config in adapters.items()
        },
        **{name: getattr(args, name) for name in ARGUMENTS if hasattr(args, name)},
        "optim": str(getattr(args.optim, "value", args.optim)),
        "processes": trainer.accelerator.num_processes,
        "versions": versions(),
    }


def _own_code(trainer: TrainerBase) -> dict[str, str]:
    """The source of a formula of the user's own; nothing for the built-in ones."""
    code = registry.code_of(trainer.objective)
    return {} if code is None else {"code": code}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
