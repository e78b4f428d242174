"""Twenty steps in one go and in two, in deterministic mode: the same weights, digit for digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gpu_stand import Setting
from gpu_trainers import made, trainer_of


def measure(setting: Setting) -> dict[str, Any]:
    folder = made(setting, "qwen2.5-0.5b", 2)
    steps = 6 if setting.tiny else 20
    ways = {"float32, tree_flex": "auto", "bfloat16, tree_flex": "auto"}
    if setting.device == "cuda":
        ways["bfloat16, tree_varlen"] = "tree_varlen"
    found = setting.table()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for name, backend in ways.items():
            if setting.device == "cpu" and name != "float32, tree_flex":
                continue
            dtype = name.partition(",")[0]
            common: dict[str, Any] = {
                "max_steps": steps,
                "full_determinism": True,
                "model_init_kwargs": {"dtype": dtype},
                "forest_backend": backend,
            }
            whole = trainer_of(setting, folder, 16, setting.work / "whole" / name, **common)
            whole.train()
            output = setting.work / "cut" / name
            saving = {"save_strategy": "steps", "save_steps": steps // 2}
            first = trainer_of(setting, folder, 16, output, **common, **saving)
            first.train()
            second = trainer_of(setting, folder, 16, output, **common, **saving)
            second.train(resume_from_checkpoint=str(_half(output, steps)))
            found.append(
                {
                    "way": name,
                    "backend": whole.backend.backend.name,
                    "again_equal": _equal(whole.model, first.model),
                    "resumed_equal": _equal(whole.model, second.model),
                    "steps": second.state.global_step,
                }
            )
    finally:
        torch.use_deterministic_algorithms(before)
    unequal = [row["way"] for row in found if not row["resumed_equal"]]
    if unequal:
        raise ArithmeticError(f"resumed weights differ: {unequal} {found}")
    return {"resuming": found}


def _half(output: Path, steps: int) -> Path:
    return output / f"checkpoint-{steps // 2}"


def _equal(one: Any, other: Any) -> bool:
    others = dict(other.named_parameters())
    return all(torch.equal(p, others[name]) for name, p in one.named_parameters())
