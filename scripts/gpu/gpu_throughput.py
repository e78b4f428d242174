"""Steps of TRL's trainer, of our own without sharing, and ours, in turns; ratios are medians.

`packed` is the honest opponent on a GPU: padding-free rows through the same kernel, which TRL 1.16
does not have for DPO.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import Any

from bench_lengths import plain_tokenizer, random_steps
from gpu_stand import Setting, needs, text_of
from gpu_trainers import quiet

STEPS, PAIRS = 4, 8


def measure(setting: Setting) -> dict[str, Any]:
    needs("trl", "peft", "datasets", "accelerate")
    quiet()
    import bench_loops

    found = setting.table()
    for name, specification in setting.models("qwen2.5-0.5b", "llama-3.2-1b").items():
        folder = Path(setting.work, name)
        specification.build(setting.device, setting.seed).save_pretrained(folder)
        # The larger one comes last and only as trainers are used by default.
        is_first = not found
        references = bench_loops.REFERENCES if is_first and not setting.tiny else ("online",)
        for data in ("hh",) if setting.tiny else ("hh", "uf", "step", "tree"):
            for baseline in ("trl", "packed"):
                for reference in references:
                    told = bench_loops.Setting(
                        folder=str(folder),
                        model=specification,
                        tokenizer=plain_tokenizer(specification.vocabulary),
                        reference=reference,
                        attention="sdpa",
                        device=setting.device,
                        token_budget=256 if setting.tiny else 16384,
                        pairs=2 if setting.tiny else PAIRS,
                        work=setting.work / "trainers",
                    )
                    row: dict[str, Any] = {"model": name, "data": data, "baseline": baseline}
                    row["reference"] = reference
                    try:
                        row |= _ratios(data, baseline, told, setting)
                    except Exception as error:
                        row["why"] = text_of(error)
                    found.append(row)
    return {"ratios": found}


def _ratios(data: str, baseline: str, told: Any, setting: Setting) -> dict[str, Any]:
    import bench_loops

    os.environ["ALIGN_CACHE"] = str(setting.work / "cache")
    steps = bench_loops.WARM_UP + (1 if setting.tiny else STEPS)
    # Trees are few, so that a step's pairs meet; the others are drawn from many.
    groups = 4 if data == "tree" else 800
    pool = setting.pairs(data, 8 if setting.tiny else groups, told.model.vocabulary)
    rows = random_steps(pool, steps, told.pairs, setting.seed)
    theirs, ours, trainer = bench_loops.compare(baseline, rows, told)
    both = list(zip(theirs, ours, strict=True))
    peaks = [a.peak / b.peak for a, b in both if a.peak and b.peak]
    return {
        "speed": median(a.seconds / b.seconds for a, b in both),
        "speed_min": min(a.seconds / b.seconds for a, b in both),
        "speed_max": max(a.seconds / b.seconds for a, b in both),
        "tokens": median(a.tokens / b.tokens for a, b in both),
        "memory": median(peaks) if peaks else None,
        "loss_gap": max(abs(a.loss - b.loss) for a, b in both),
        "backend": trainer.backend.backend.name,
        "n": len(both),
    }
