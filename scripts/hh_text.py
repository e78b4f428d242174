"""The text of hh_table.py's table, in Markdown."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from hh_measure import Measured

from align.estimates import Estimate
from align.recipe import Recipe


def head(recipe: Recipe, pairs: Mapping[str, Any], answers: str) -> list[str]:
    """What was done to what, and how the columns are read.

    Args:
        recipe: of any run.
        pairs: what `written_pairs` found.
        answers: how they were sampled.
    """
    model, train = recipe.model, recipe.train
    right, unequal = pairs["chosen_is_shorter"]
    layers = model.lora_layers_to_transform
    where = f" on layers {layers[0]} to {layers[-1]}" if layers else ""
    dropped = ", ".join(f"{n} {reason}" for reason, n in pairs["dropped"].items()) or "none"
    source, flips = Path(pairs["asked"]["data"]["pairs"]).name, pairs["asked"]["flips"]
    return [
        f"{model.model_name_or_path}, weights {model.dtype}, LoRA r {model.lora_r}{where}. "
        f"{source}: {pairs['read']} pairs read, {dropped} dropped; {pairs['train']} to train on, "
        f"{pairs['held_out']} held out, no dialogue on both sides, at most "
        f"{recipe.data.max_length} tokens. One pass, batches of "
        f"{train.per_device_train_batch_size}, AdamW, learning rate {train.learning_rate:g} "
        f"({train.lr_scheduler_type}), seed {train.seed}. In `-flipped` {flips:.0%} of the labels "
        f"are exchanged, the same ones. {_provenance()}",
        "",
        "Accuracy: the chosen answer's log-ratio to the start exceeds the rejected one's (for "
        "likelihood too). Margin and chosen: summed log-ratios, without beta. Differences: on the "
        f"same held-out pairs, paired. KL and length: of {answers}. [95 % interval]. That the "
        f"shorter answer is the better one is right for {right} of {unequal} held-out pairs of "
        "unequal lengths. CPU: without measuring; dpo and dpo-flipped score the reference for the "
        "runs after them.",
    ]


def _provenance() -> str:
    root = str(Path(__file__).resolve().parent.parent)
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, trl))
    return (
        f"{datetime.date.today().isoformat()}, commit {commit or 'unknown'}, {versions}, "
        f"{platform.machine()}, {torch.get_num_threads()} thread."
    )


def table(
    rows: Mapping[str, tuple[Mapping[str, Any], Measured]], against: Mapping[str, str]
) -> list[str]:
    """Lines of Markdown, one run each.

    Args:
        rows: run -> pairs and seconds, and what was measured.
        against: run -> the one that it is compared with, pair by pair.
    """
    heads = (
        "run", "pairs", "accuracy, %", "compared with", "accuracy, points", "margin, nats",
        "margin, difference", "chosen, nats", "KL, nats", "length, tokens", "finished, %",
        "training, s", "CPU, s",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, (about, found) in rows.items():
        own = found.estimates()
        other = against.get(name)
        paired: Mapping[str, Estimate] = {}
        if other is not None and other in rows:
            paired = found.against(rows[other][1])
        cells = [
            name,
            str(about["pairs"]),
            shown(own["accuracy"], 100, 1),
            other if paired and other else "",
            shown(paired.get("accuracy"), 100, 1, signed=True),
            shown(own["margin"], 1, 2),
            shown(paired.get("margin"), 1, 2, signed=True),
            shown(own["chosen"], 1, 2),
            shown(own["kl"], 1, 2),
            shown(own["length"], 1, 1),
            shown(own["finished"], 100, 1),
            about["training"],
            about["cpu"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def shown(found: Estimate | None, scale: float, decimals: int, *, signed: bool = False) -> str:
    """A number with its interval; empty where there is none."""
    if found is None or found.value is None:
        return ""
    value = f"{found.value * scale:{'+' if signed else ''}.{decimals}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{found.low * scale:.{decimals}f}, {found.high * scale:.{decimals}f}]"
