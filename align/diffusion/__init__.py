"""Preference training of diffusion models; the only room that imports diffusers,
beside the world that is made of one (`align.worlds.shapes`).

`SePPOTrainer` and its `SePPOConfig` train from chosen images alone; `DiffusionTrainer` takes any
formula of `align.diffusion.objectives`. Importing this package imports neither diffusers nor
accelerate: the trainers come when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from align.diffusion.objectives import (
    AnyDiffusionObjective,
    DiffusionDPO,
    DiffusionSFT,
    SePPO,
)

if TYPE_CHECKING:
    from align.diffusion.config import SePPOConfig
    from align.diffusion.named import SePPOTrainer
    from align.diffusion.trainer import DiffusionTrainer

_LATER = {
    "SePPOConfig": "align.diffusion.config",
    "DiffusionTrainer": "align.diffusion.trainer",
    "SePPOTrainer": "align.diffusion.named",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


__all__ = [
    "AnyDiffusionObjective",
    "DiffusionDPO",
    "DiffusionSFT",
    "DiffusionTrainer",
    "SePPO",
    "SePPOConfig",
    "SePPOTrainer",
]
