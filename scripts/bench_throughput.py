"""Ours against other ways to take the same DPO steps: speed, memory, and the token count's limit.

python scripts/bench_throughput.py [--data D ...] [--baseline B ...] [--model M ...] [--quick]
                                   [--device cpu|cuda] [--steps N] [--seed S] [--json FILE]
                                   [--reference online|cached ...] [--token-budget N]
python scripts/bench_throughput.py --growth FILE.png [--json FILE]
python scripts/bench_throughput.py --passes [--model M ...] [--device cpu|cuda] [--json FILE]

Two real training loops run in one process and take turns step by step, on the same examples, from
the same weights; who goes first alternates. A step is collation, forward, backward, clipping and
the optimizer, the reference computed in it (--reference cached: before training, by both). On a CPU
it is measured in CPU time of the process on one thread, on a GPU between CUDA events. Memory is the
peak of a step above what was in use before it, gradients allocated. Warm-up steps are not counted;
ratios are medians over steps, above 1 where ours is better. Baselines:

trl          trl.DPOTrainer.train(), random batches
trl_grouped  the same with train_sampling_strategy="group_by_length"
compact      our trainer on padded rows, LM head on scored tokens only (what TRL does on a GPU)
packed       our trainer without padding, every row computed on its own

--growth draws how the time of a pass grows; --passes times passes of growing token budgets and the
host's work for them. Exits with 1 where the two sides' losses differ: they did not do the same
work then.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from bench_lengths import (  # noqa: E402
    DATA,
    PAIRS,
    REAL,
    TokensPerPair,
    data_set,
    grouped_steps,
    plain_tokenizer,
    random_steps,
    real_folder,
)
from bench_loops import (  # noqa: E402
    BASELINES,
    REFERENCES,
    WARM_UP,
    Setting,
    compare,
)
from bench_models import MODELS  # noqa: E402
from bench_turns import Step  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

CONSOLE = Console(width=None if sys.stdout.isatty() else 150)
# Differences of the two sides' losses, in nats, that rounding explains over a few steps.
LOSS_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
ON_CPU = ["5m"]
ON_GPU = ["qwen2.5-0.5b", "llama-3.2-1b", "llama-3.1-8b"]


def main() -> int:
    asked = arguments()
    if asked.device == "cuda" and not torch.cuda.is_available():
        CONSOLE.print("--device cuda: this machine has no CUDA device, so nothing was measured.")
        return 0
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    asked.model = asked.model or (ON_GPU if asked.device == "cuda" else ON_CPU)
    if asked.growth is not None or asked.passes:
        import bench_passes

        if asked.growth is not None:
            found = bench_passes.growth(asked.growth, asked.seed)
        else:
            found = bench_passes.budgets(asked.model, asked.device, asked.seed, CONSOLE)
        write(asked.json, [row | provenance(asked) for row in found])
        return 0
    return comparisons(asked)


def arguments() -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), metavar="D")
    parser.add_argument("--baseline", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--model", nargs="+", choices=MODELS)
    parser.add_argument("--reference", nargs="+", choices=REFERENCES, default=["online"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, help="counted ones; default 6, of 8 pairs")
    parser.add_argument("--token-budget", type=int, default=4096, help="of ours; default 4096")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 counted steps of 4 pairs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--growth", type=Path, metavar="FILE.png")
    other.add_argument("--passes", action="store_true")
    asked = parser.parse_args()
    if asked.growth is not None and asked.device != "cpu":
        parser.error("--growth is drawn for a CPU")
    asked.steps = asked.steps or (2 if asked.quick else 6)
    asked.pairs = PAIRS // 2 if asked.quick else PAIRS
    return asked


def comparisons(asked: argparse.Namespace) -> int:
    if not real_folder().is_dir() and set(asked.data) & REAL.keys():
        CONSOLE.print(
            f"{', '.join(REAL)} are left out: {real_folder()} does not exist, and ALIGN_TEST_DATA "
            "does not name the folder of the real files."
        )
        asked.data = [name for name in asked.data if name not in REAL]
    attentions = ["sdpa"]
    if asked.device == "cuda" and importlib.util.find_spec("flash_attn"):
        attentions.append("flash_attention_2")
    found: list[dict[str, Any]] = []
    # Of the code that was imported, whatever is committed while it runs.
    told = provenance(asked)
    with tempfile.TemporaryDirectory() as work:
        os.environ["ALIGN_CACHE"] = f"{work}/cache"
        for name in asked.model:
            model = MODELS[name]
            tokenizer = plain_tokenizer(model.vocabulary)
            folder = Path(work, name)
            model.build(asked.device, asked.seed).save_pretrained(folder)
            for data in asked.data:
                for baseline, reference, attention in (
                    (b, r, a)
                    for b in asked.baseline
                    for r in asked.reference
                    for a in (attentions if b.startswith("trl") else ["sdpa"])
                ):
                    setting = Setting(
                        folder=str(folder),
                        model=model,
                        tokenizer=tokenizer,
                        reference=reference,
                        attention=attention,
                        device=asked.device,
                        token_budget=asked.token_budget,
                        pairs=asked.pairs,
                        work=Path(work, "trainers"),
                    )
                    began = time.monotonic()
                    row = comparison(data, baseline, setting, asked)
                    found.append({**row, "model": name, **told})
                    write(asked.json, found)
                    print(
                        f"{data} against {baseline}: {row['speed_ratio']:.2f}x "
                        f"({time.monotonic() - began:.0f} s)",
                        file=sys.stderr,
                    )
    CONSOLE.print(table(found))
    apart = [f"{row['data']}/{row['baseline']}" for row in found if not row["same_losses"]]
    if apart:
        CONSOLE.print(f"The two sides' losses differ: {', '.join(apart)}.")
    return 1 if apart else 0


def comparison(
    data: str, baseline: str, setting: Setting, asked: argparse.Namespace
) -> dict[str, Any]:
    grouped = baseline == "trl_grouped"
    vocabulary = min(setting.model.vocabulary, 1 << 15)
    pool = data_set(data, large=grouped, seed=asked.seed, vocabulary=vocabulary)
    draw = grouped_steps if grouped else random_steps
    rows = draw(pool, asked.steps + WARM_UP, setting.pairs, asked.seed)
    theirs, ours, trainer = compare(baseline, rows, setting)
    speed = [a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)]
    token = [a.tokens / b.tokens for a, b in zip(theirs, ours, strict=True)]
    loss_gap = max(abs(a.loss - b.loss) for a, b in zip(theirs, ours, strict=True))
    counted = data_set(data, large=True, seed=asked.seed, vocabulary=vocabulary)
    return {
        "data": data,
        "baseline": baseline,
        "speed_ratio": median(speed),
        "speed_ratio_min": min(speed),
        "speed_ratio_max": max(speed),
        "wall_ratio": median(a.wall / b.wall for a, b in zip(theirs, ours, strict=True)),
        "memory_ratio": _memory_ratio(theirs, ours),
        "token_ratio": median(token),
        "token_limit": _limit(baseline, TokensPerPair.of(counted, asked.seed)),
        "efficiency": median(s / t for s, t in zip(speed, token, strict=True)),
        "n": len(speed),
        "pairs_per_step": setting.pairs,
        "pairs_of_the_set": len(pool),
        "tokens_per_pair": sum(step.tokens for step in ours) / len(ours) / setting.pairs,
        "baseline_tokens_per_pair": sum(step.tokens for step in theirs)
        / len(theirs)
        / setting.pairs,
        "seconds_per_pair": median(step.seconds for step in ours) / setting.pairs,
        "layout_ms_per_1k_tokens": _layout_time(trainer, len(rows), setting.pairs),
        "loss_gap": loss_gap,
        "same_losses": loss_gap <= LOSS_TOLERANCE[setting.model.dtype],
        "reference": setting.reference,
        "attention": setting.attention,
        "backend": trainer.backend.backend.name,
        "token_budget": setting.token_budget,
    }


def _memory_ratio(theirs: Sequence[Step], ours: Sequence[Step]) -> float | None:
    ratios = [a.peak / b.peak for a, b in zip(theirs, ours, strict=True) if a.peak and b.peak]
    return median(ratios) if ratios else None


def _limit(baseline: str, tokens: TokensPerPair) -> float:
    """What counting tokens allows, over a large set whose groups stay together."""
    theirs = {"trl_grouped": tokens.grouped, "packed": tokens.free}.get(baseline, tokens.padded)
    return theirs / tokens.shared


def _layout_time(trainer: Any, rows: int, pairs: int) -> float:
    """Milliseconds of CPU to build forests, per 1000 tokens of their rows."""
    examples = [
        [trainer.train_dataset[i] for i in range(start, start + pairs)]
        for start in range(0, rows, pairs)
    ]
    began = time.process_time()
    batches = [trainer.data_collator(step) for step in examples]
    taken = time.process_time() - began
    tokens = sum(part["pack"].row_tokens for batch in batches for part in batch["parts"])
    return 1e6 * taken / tokens


def table(found: Sequence[dict[str, Any]]) -> Table:
    shown = Table(
        caption="Times ours is better: median over n steps (lowest to highest). Tokens: slots "
        "computed for the same batches, per step; limit: counted over a large set whose groups "
        "stay together. Layout: ms of host time per 1000 tokens. Set: pairs to draw batches from.",
        caption_justify="left",
    )
    columns = (
        "data",
        "baseline",
        "speed",
        "n",
        "wall",
        "memory",
        "tokens",
        "limit",
        "speed/tokens",
        "tokens a pair",
        "layout",
        "set",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    several = {
        key: len({row[key] for row in found}) > 1 for key in ("model", "reference", "attention")
    }
    for row in found:
        named = [row["baseline"], *(str(row[key]) for key, is_told in several.items() if is_told)]
        memory = row["memory_ratio"]
        shown.add_row(
            row["data"],
            " ".join(named),
            "{speed_ratio:.2f} ({speed_ratio_min:.2f} to {speed_ratio_max:.2f})".format(**row),
            str(row["n"]),
            f"{row['wall_ratio']:.2f}",
            "not measured" if memory is None else f"{memory:.1f}",
            f"{row['token_ratio']:.2f}",
            f"{row['token_limit']:.2f}",
            f"{row['efficiency']:.0%}",
            f"{row['baseline_tokens_per_pair']:.0f} / {row['tokens_per_pair']:.0f}",
            f"{row['layout_ms_per_1k_tokens']:.2f}",
            str(row["pairs_of_the_set"]),
        )
    return shown


def provenance(asked: argparse.Namespace) -> dict[str, Any]:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    on_gpu = asked.device == "cuda"
    return {
        "device": asked.device,
        "hardware": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, 1 thread",
        "commit": described.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
        "seed": asked.seed,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, trl)},
        },
    }


def write(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
