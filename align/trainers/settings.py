# pyright: basic
"""What a resumed run must have in common with the one that wrote the checkpoint."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import accelerate
import datasets
import peft
import torch
import transformers
import trl

from align.reference import digest, rows_digest
from align.trainers.base import TrainerBase
from align.trainers.rows import scored_columns

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
    args = trainer.args
    columns = sorted({*scored_columns(trainer.train_dataset), *trainer._optional_columns})
    adapters = getattr(trainer.model, "peft_config", None)
    return {
        "objective": trainer.objective.model_dump(mode="json"),
        "rows": digest(rows_digest(trainer.train_dataset, [name]) for name in columns),
        "policy": trainer._start.to_json(),
        "roles": {role: identity.to_json() for role, identity in trainer.identities.items()},
        "adapter": None
        if adapters is None
        else {
            name: json.loads(json.dumps(config.to_dict(), default=_plain))
            for name, config in adapters.items()
        },
        **{name: getattr(args, name) for name in ARGUMENTS},
        "optim": str(getattr(args.optim, "value", args.optim)),
        "processes": trainer.accelerator.num_processes,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    modules = (torch, transformers, trl, peft, accelerate, datasets)
    return {"align": version("align-toolkit")} | {m.__name__: m.__version__ for m in modules}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
