"""Where an interrupted run goes on: weights, optimizer, update, reference; whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.errors import RecipeError
from align.runs.manifest import damage, publish

FOLDER = "newest"


@dataclass(frozen=True, eq=False)
class Progress:
    """A run after some of its updates.

    Attributes:
        step: updates done.
        reference: number of the checkpoint that is the reference of the present round; None where
            the formula has none.
        reference_digest: of its weights, or None.
        log_history: the trainer's log so far.
        sums: what was noted since its last entry, by name.
        policy: the trained weights.
        optimizer: what the optimizer says of itself.
    """

    step: int
    reference: int | None
    reference_digest: str | None
    log_history: list[dict[str, Any]]
    sums: dict[str, list[float]]
    policy: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_progress(folder: Path, progress: Progress, settings: Mapping[str, Any]) -> None:
    """Replaces the newest checkpoint by this one, by one rename."""
    partial = folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy = {name: tensor.contiguous() for name, tensor in progress.policy.items()}
    save_file(policy, partial / "policy.safetensors")
    torch.save(progress.optimizer, partial / "optimizer.pt")
    about = {
        "step": progress.step,
        "reference": progress.reference,
        "reference_digest": progress.reference_digest,
        "log_history": progress.log_history,
        "sums": progress.sums,
    }
    (partial / "progress.json").write_text(json.dumps(about, allow_nan=False))
    publish(partial, folder / FOLDER, {"run": json.loads(json.dumps(settings))})


def load_progress(folder: Path, settings: Mapping[str, Any]) -> Progress | None:
    """The newest checkpoint, or None where there is none.

    Raises:
        RecipeError: it is damaged, or of a run with other settings.
    """
    newest = folder / FOLDER
    if not newest.is_dir():
        return None
    wrong = damage(newest)
    if wrong is not None:
        raise RecipeError(
            f"{newest} cannot be gone on from: {wrong}. Delete the run's folder and run the same "
            "command again; it starts afresh."
        )
    then = json.loads((newest / "manifest.json").read_text())["about"]["run"]
    now = json.loads(json.dumps(settings))
    changed = [
        f"{key}: {then.get(key)} -> {now.get(key)}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if changed:
        raise RecipeError(
            f"{newest} belongs to another run than this one. Changed since: {'; '.join(changed)}. "
            "Put these back, or start a new run in another folder."
        )
    about = json.loads((newest / "progress.json").read_text())
    return Progress(
        **about,
        policy=load_file(newest / "policy.safetensors"),
        optimizer=torch.load(newest / "optimizer.pt", weights_only=True, map_location="cpu"),
    )
