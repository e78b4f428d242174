"""SePPO on the world of shapes beside fine-tuning and Diffusion-DPO: one table over seeds.

    python scripts/seppo_table.py [--seeds 0 1 2 3 4] [--only seppo] [--out outputs/seppo-table]

Runs `recipes/seppo/tiny.yaml` with each seed, and the other formulas through the same trainer with
the same updates, batches and learning rate. A seed is that of the red images, of training, and of
the measured captions and noise; the base model is the same throughout. Writes results.json and
table.md; what results.json already holds is not run again. All runs take about half an hour on one
core.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from align.app.diffusion import train_diffusion  # noqa: E402
from align.app.diffusion_recipe import load_diffusion_recipe  # noqa: E402
from align.runs.folder import RunFolder  # noqa: E402

# Row -> what differs from the recipe.
METHODS = {
    "seppo": [],
    "seppo, latest": ["objective.reference_selection=latest"],
    "seppo, initial": ["objective.reference_selection=initial"],
    "seppo, no flip (SPIN)": ["objective.anchor_flip=false"],
    "fine-tuning": ["objective={name: diffusion_sft}", "train.pool_size=null"],
    "diffusion_dpo": ["objective={name: diffusion_dpo, beta: 40}", "train.pool_size=null"],
    "diffusion_dpo, beta 400": [
        "objective={name: diffusion_dpo, beta: 400}",
        "train.pool_size=null",
    ],
    "diffusion_dpo, rate / 10": [
        "objective={name: diffusion_dpo, beta: 40}",
        "train.pool_size=null",
        "train.learning_rate=3e-5",
    ],
    "diffusion_dpo, rate / 100": [
        "objective={name: diffusion_dpo, beta: 40}",
        "train.pool_size=null",
        "train.learning_rate=3e-6",
    ],
}
COLUMNS = {
    "reward": ("shapes/reward", 3),
    "red, %": ("shapes/red", 1),
    "shape quality": ("shapes/quality", 3),
    "error, chosen": ("denoising/chosen_error", 3),
    "error, rejected": ("denoising/rejected_error", 3),
}
GAIN, KEPT = 0.10, 0.85  # least gain of reward; least share of the base's shape quality


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "seppo-table")
    asked = parser.parse_args()
    logging.getLogger("align").setLevel(logging.WARNING)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else []
    known = {(row["method"], row["seed"]) for row in results}
    for method in asked.only:
        for seed in asked.seeds:
            if (method, seed) in known:
                continue
            results.append(run(method, seed, asked.out / "run"))
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(results[-1]), flush=True)
    text = table(results)
    (asked.out / "table.md").write_text(text)
    print(text)


def run(method: str, seed: int, folder: Path) -> dict[str, Any]:
    """One method with one seed: what it measured."""
    seeds = [f"{key}.seed={seed}" for key in ("data", "train", "evaluate")]
    changes = [*METHODS[method], *seeds, "evaluate.pictures=0"]
    recipe = load_diffusion_recipe(ROOT / "recipes" / "seppo" / "tiny.yaml", changes)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    metrics = train_diffusion(recipe, RunFolder(folder))
    assert metrics is not None
    found = {
        "method": method,
        "seed": seed,
        "before": {name: m["value"] for name, m in metrics["before"].items()},
        "after": {name: m["value"] for name, m in metrics["after"].items()},
        "flip_rate": metrics["training"]["flip_rate"],
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    shutil.rmtree(folder)
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds, and the range of the seeds."""
    head = [*COLUMNS, "flips, %", "CPU seconds", "seeds", "passes"]
    lines = ["| | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    seen = {(row["seed"], *row["before"].values()): row["before"] for row in results}
    lines.append(_row("base", list(seen.values()), ["", "", str(len(seen)), ""]))
    for method in METHODS:
        rows = [row for row in results if row["method"] == method]
        if not rows:
            continue
        flips = [row["flip_rate"] for row in rows if row["flip_rate"] is not None]
        rest = [
            f"{100 * statistics.fmean(flips):.0f}" if flips else "",
            f"{statistics.fmean(row['cpu_seconds'] for row in rows):.0f}",
            str(len(rows)),
            str(sum(map(passes, rows))),
        ]
        lines.append(_row(method, [row["after"] for row in rows], rest))
    lines.append(
        f"\nPasses: seeds whose reward gains at least {GAIN:.2f} and whose shape quality is at "
        f"least {KEPT:.2f} of the base's."
    )
    return "\n".join(lines) + "\n"


def passes(row: dict[str, Any]) -> bool:
    """Whether one run gains the reward and keeps the shapes."""
    before, after = row["before"], row["after"]
    gain = after["shapes/reward"] - before["shapes/reward"]
    return gain >= GAIN and after["shapes/quality"] >= KEPT * before["shapes/quality"]


def _row(name: str, measured: Sequence[dict[str, float]], rest: Sequence[str]) -> str:
    cells = []
    for key, decimals in COLUMNS.values():
        scale = 100 if key == "shapes/red" else 1
        values = [found[key] * scale for found in measured]
        low, high = (f"{bound:.{decimals}f}" for bound in (min(values), max(values)))
        cells.append(f"{statistics.fmean(values):.{decimals}f} ({low} to {high})")
    return f"| {name} | " + " | ".join([*cells, *rest]) + " |"


if __name__ == "__main__":
    main()
