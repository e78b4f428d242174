"""Tiny classifiers and whole pairs for the trainers of reward and preference models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from align.policies.classifiers import new_classifier
from align.policies.model import Model
from align.trainers.kinds import kind_trainer

ARGUMENTS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
}


def whole_pairs(n: int = 12, seed: int = 0, **columns: list[float]) -> Dataset:
    """Random rows of both sides, with where they came from."""
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> list[int]:
        length = int(torch.randint(4, 10, (), generator=generator))
        return [1, *torch.randint(4, 30, (length,), generator=generator).tolist()]

    rows = {
        "chosen_ids": [tokens() for _ in range(n)],
        "rejected_ids": [tokens() for _ in range(n)],
    }
    place = {"source": ["rows.jsonl"] * n, "row": list(range(1, n + 1))}
    return Dataset.from_dict({**rows, **place, **columns})


def classifier(folder: str, seed: int = 0) -> Any:
    """The tiny policy of the conftest as a classifier, its head far from 0."""
    torch.manual_seed(seed)
    model = new_classifier(Model(model_name_or_path=folder), folder)
    with torch.no_grad():
        model.score.weight.mul_(20)
    return model


def trainer_of(
    kind: str,
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    out: Path,
    *,
    held_out: Dataset | None = None,
    adapter: Any = None,
    allow_change: tuple[str, ...] = (),
    **arguments: Any,
) -> Any:
    return kind_trainer(
        kind,
        model,
        folder=out,
        arguments=ARGUMENTS | arguments,
        train=rows,
        held_out=held_out,
        tokenizer=tokenizer,
        adapter=adapter,
        allow_change=allow_change,
    )


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def scores(model: Any, rows: list[list[int]]) -> list[float]:
    """One row at a time, without padding: by hand."""
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0, 0].item() for row in rows]
