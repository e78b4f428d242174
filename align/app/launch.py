"""How a run is launched, as far as its memory hangs on it: devices, and what is split over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from align.errors import RecipeError

# What each device holds a part of: nothing (DDP), gradients and optimizer (ZeRO-1 and 2), weights
# too (FSDP, ZeRO-3).
Split = Literal["nothing", "gradients", "weights"]
_ZERO: dict[int, Split] = {0: "nothing", 1: "gradients", 2: "gradients", 3: "weights"}
_WHOLE = frozenset({"NO", "MULTI_GPU", "MULTI_CPU"})


@dataclass(frozen=True)
class Launch:
    """Devices of a run.

    Attributes:
        processes: one device each, on all machines.
        split: what each of them holds a part of.
        keeps_float32: whether the optimizer keeps a float32 copy of 16-bit weights (DeepSpeed).
        on_cuda: whether they are GPUs; None means that this machine decides.
    """

    processes: int = 1
    split: Split = "nothing"
    keeps_float32: bool = False
    on_cuda: bool | None = None

    @classmethod
    def of(cls, path: Path) -> Launch:
        """Of a file for `accelerate launch --config_file`.

        Raises:
            RecipeError: it cannot be read, or names a launch that is not estimated here.
        """
        try:
            written: Any = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RecipeError(
                f"--launch {path} cannot be read ({error}). Name a file for `accelerate launch "
                "--config_file`, such as recipes/accelerate/ddp.yaml."
            ) from error
        if not isinstance(written, Mapping) or "distributed_type" not in written:
            raise RecipeError(
                f"--launch {path} has no `distributed_type`, so it is no file for `accelerate "
                "launch --config_file`; `accelerate config` writes one."
            )
        kind = str(written["distributed_type"]).upper()
        processes = int(written.get("num_processes", 1))
        on_cuda = not written.get("use_cpu", False)
        if kind in _WHOLE:
            return cls(processes, on_cuda=on_cuda)
        if kind == "FSDP":
            return cls(processes, "weights", on_cuda=on_cuda)
        if kind == "DEEPSPEED":
            stage = int((written.get("deepspeed_config") or {}).get("zero_stage", 2))
            return cls(processes, _ZERO[stage], keeps_float32=True, on_cuda=on_cuda)
        raise RecipeError(
            f"--launch {path}: no memory is estimated for distributed_type {kind}; it is for "
            f"{', '.join(sorted(_WHOLE))}, FSDP and DEEPSPEED."
        )

    @property
    def gradient_parts(self) -> int:
        """How many devices share gradients and optimizer."""
        return 1 if self.split == "nothing" else self.processes

    @property
    def weight_parts(self) -> int:
        """How many devices share the weights."""
        return self.processes if self.split == "weights" else 1


ALONE = Launch()
