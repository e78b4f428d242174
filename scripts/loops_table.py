"""On-policy loops against their baselines, on the two built-in worlds: one table.

    python scripts/loops_table.py [--seeds 0 1 2] [--only spo inpo] [--out outputs/loops-table]

Runs `recipes/<method>/tiny.yaml` (world of sums) and `recipes/<method>/styles-tiny.yaml` (world of
styles) with each seed, and baselines that spend the same number of judge calls at once, on samples
of the start policy. Writes results.json and table.md; what results.json already holds is not run
again. All runs take about an hour on one core.
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

from loops_baselines import Budget, best_only, best_reply, start_alone  # noqa: E402

from align.app.loop import loop_recipe  # noqa: E402
from align.recipe import Recipe, load_recipe  # noqa: E402
from align.worlds.styles import Styles  # noqa: E402

WORLDS = {"sums": "tiny.yaml", "styles": "styles-tiny.yaml"}
LOOPS = ("iterative_dpo", "iterative_rpo", "inpo", "nash_mp", "apo", "spo", "p3o", "copg")
# Offline: all samples are the start policy's, and one long round is trained on them.
OFFLINE = {
    "offline_dpo": ["objective.beta=0.1", "train.learning_rate=1e-4"],  # of recipes/dpo/tiny.yaml
    "offline_dpo_mild": [],  # of iterative DPO
}
BASELINES = ("base", "best_reply", "sft_on_best", *OFFLINE)
COLUMNS = {
    "sampled, %": ("sums", "sums/sampled_accuracy", 100, 1),
    "greedy, %": ("sums", "sums/greedy_accuracy", 100, 1),
    "KL, nats": ("sums", "sums/kl_to_reference", 1, 2),
    "exploitability, %": ("styles", "styles/exploitability", 100, 1),
    "win rate, %": ("styles", "styles/win_rate", 100, 1),
    "KL, nats ": ("styles", "styles/kl_to_reference", 1, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=(*BASELINES, *LOOPS), help="these methods")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "loops-table")
    asked = parser.parse_args()
    logging.getLogger("align").setLevel(logging.WARNING)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else []
    known = {(row["method"], row["world"], row["seed"]) for row in results}
    for seed in asked.seeds:
        for world in asked.worlds:
            for method in asked.only or (*BASELINES, *LOOPS):
                if (method, world, seed) in known or (method, world) == ("best_reply", "sums"):
                    continue
                results.append(run(method, world, seed, asked.out / "runs"))
                file.write_text(json.dumps(results, indent=1) + "\n")
                print(json.dumps(results[-1]), flush=True)
    text = table(results)
    (asked.out / "table.md").write_text(text)
    print(text)


def run(method: str, world: str, seed: int, folder: Path) -> dict[str, Any]:
    """One method on one world with one seed: what it measured and what it spent."""
    started = time.monotonic()
    changes = [f"{key}.seed={seed}" for key in ("train", "prompts", "evaluate")]
    changes.append("train.disable_tqdm=true")
    of = "iterative_dpo" if method in BASELINES else method
    recipe = ROOT / "recipes" / of / WORLDS[world]
    if method == "base":
        found, spent = start_alone(load_recipe(recipe, changes))
    elif method == "best_reply":
        found, spent = best_reply(load_recipe(recipe, changes))
    elif method == "sft_on_best":
        found, spent = best_only(load_recipe(recipe, changes))
    else:
        if method in OFFLINE:
            changes += at_once(load_recipe(recipe, changes)) + rate_of(method, world)
        target = folder / f"{method}-{world}-{seed}"
        shutil.rmtree(target, ignore_errors=True)
        loop_recipe(recipe, changes, target, ())
        metrics = json.loads((target / "metrics.json").read_text())
        found, spent = metrics["after"], {k: metrics["loop"][k] for k in ("judge_calls", "pairs")}
        shutil.rmtree(target)
    return {
        "method": method,
        "world": world,
        "seed": seed,
        "metrics": {name: value["value"] for name, value in found.items()},
        **spent,
        "seconds": round(time.monotonic() - started, 1),
    }


def at_once(recipe: Recipe) -> list[str]:
    """Overrides that make one long round of a loop, with as many judge calls."""
    budget = Budget.of(recipe)
    if recipe.model.model_name_or_path == "world:sums":
        return ["rounds=1", f"prompts.per_round={budget.rounds * budget.prompts}"]
    # There are few topics: more samples of each, of which every two are compared once.
    topics = len(Styles().topics("train", seed=0))
    pairs = budget.calls // topics
    stages = [
        {"run": "generate", "samples": 2 * pairs, "max_new_tokens": budget.max_new_tokens},
        {"run": "judge", "by": "world", "ask": "random_pair"},
        {"run": "select", "rule": "random_pair", "pairs": pairs},
        {"run": "train"},
    ]
    return ["rounds=1", f"prompts.per_round={topics}", f"each_round={json.dumps(stages)}"]


def rate_of(method: str, world: str) -> list[str]:
    """The overrides of an offline baseline; the world of styles has its own learning rate."""
    changes = OFFLINE[method]
    return [c for c in changes if world == "sums" or not c.startswith("train.learning_rate")]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds, and the range of the seeds."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for method in (*BASELINES, *LOOPS):
        cells = []
        for world, key, scale, decimals in COLUMNS.values():
            values = [
                row["metrics"][key] * scale
                for row in results
                if (row["method"], row["world"]) == (method, world)
            ]
            cells.append(_cell(values, decimals))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    for world in WORLDS:
        calls = [r["judge_calls"] for r in results if r["world"] == world and r["judge_calls"]]
        if calls:
            lines.append(f"\nJudge calls of a run, {world}: {min(calls)} to {max(calls)}.")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return ""
    low, high = (f"{bound:.{decimals}f}" for bound in (min(values), max(values)))
    return f"{statistics.fmean(values):.{decimals}f} ({low} to {high})"


if __name__ == "__main__":
    main()
