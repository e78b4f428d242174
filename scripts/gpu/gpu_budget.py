"""`token_budget: auto` finds a budget, and says so in words where nothing fits."""

from __future__ import annotations

from typing import Any

import torch
from gpu_stand import Setting
from gpu_trainers import made, trainer_of

import align.trainers.budget
from align.errors import MachineError


def measure(setting: Setting) -> dict[str, Any]:
    folder = made(setting, "llama-3.2-1b" if not setting.tiny else "tiny", 4)
    pairs = 16 if setting.tiny else 256
    asked = {"token_budget": "auto", "per_device_train_batch_size": pairs, "max_steps": 1}
    trainer = trainer_of(setting, folder, pairs, setting.work / "auto", **asked)
    budget = trainer.data_collator.token_budget
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    found: dict[str, Any] = {"budget": budget, "backend": trainer.backend.backend.name}
    if setting.device == "cuda":
        found |= {
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
        }
    del trainer
    return found | {"refusal": _refusal(setting, folder, pairs, asked)}


def _refusal(setting: Setting, folder: Any, pairs: int, asked: dict[str, Any]) -> str:
    """What is said where not even the longest pair fits."""
    free = align.trainers.budget.free_memory
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated() + torch.cuda.memory_reserved()
        total = torch.cuda.get_device_properties(0).total_memory
        # Room for the weights and little more: the allocator then refuses for good.
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 3 * 2**30) / total))
    else:
        align.trainers.budget.free_memory = lambda device: 1 << 10
    try:
        trainer_of(setting, folder, pairs, setting.work / "full", **asked)
    except (MachineError, torch.OutOfMemoryError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        align.trainers.budget.free_memory = free
        if setting.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    raise RuntimeError("a budget was found where there is no memory")
