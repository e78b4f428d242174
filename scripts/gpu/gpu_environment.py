"""What is here: versions, the device, and what of it the forest can use."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import shutil
from typing import Any

import torch
from gpu_stand import Setting

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "triton",
    "flash_attn",
    "pydantic",
    "pytest",
    "numpy",
)


def measure(setting: Setting) -> dict[str, Any]:
    from align.forest.varlen import KERNEL, varlen_attn

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
        "c_compiler": next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None),
        "varlen_attn": None if varlen_attn is None else str(inspect.signature(varlen_attn)),
        "varlen_parameters": None if KERNEL is None else sorted(KERNEL.parameters),
        "mm_out_dtype": "out_dtype" in (torch.mm.__doc__ or ""),
        "cuda": torch.version.cuda,
    }
    if setting.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": about.name,
            "capability": list(torch.cuda.get_device_capability()),
            "memory_gib": about.total_memory / 2**30,
            "free_gib": torch.cuda.mem_get_info()[0] / 2**30,
            "bf16": torch.cuda.is_bf16_supported(),
            "matmul_tflops": _matmul(),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _matmul() -> float:
    """What the card gives a plain bfloat16 product, in TFLOP/s."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    begin.record()
    for _ in range(20):
        torch.mm(a, b)
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * n**3 / (begin.elapsed_time(end) / 1000) / 1e12
