"""Earlier checkpoints of the policy, and which of them is the reference of a round.

C = [c_0, c_1, ...]: c_0 is the start, c_k the policy after round k. Round k (from 1) chooses among
the k checkpoints that there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.diffusion.objectives import Selection
from align.diffusion.seeds import generator_for


def select(strategy: Selection, count: int, seed: int) -> int:
    """Which of `count` checkpoints is the reference, by its number.

    Every process chooses the same, and a run that goes on chooses again what it chose before: the
    draw depends on the seed and on `count` alone.

    Args:
        strategy: random (uniform over all), latest, or initial.
        count: checkpoints so far, at least 1.
        seed: of the run.
    """
    if strategy == "initial":
        return 0
    if strategy == "latest":
        return count - 1
    return int(torch.randint(count, (1,), generator=generator_for(seed, "reference", count)))


def state_digest(state: Mapping[str, Tensor]) -> str:
    """16 hex characters of the SHA-256 over names, types, shapes and bytes."""
    h = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        h.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        h.update(flat.view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


class Replay:
    """The checkpoints of one run.

    Args:
        strategy: those that it can never choose again are not kept.
        folder: where they lie, one file each; None keeps them in memory.
        writes: False on all processes but one that share a folder.
    """

    def __init__(
        self, strategy: Selection, folder: Path | None = None, *, writes: bool = True
    ) -> None:
        self.strategy: Selection = strategy
        self._folder = folder
        self._writes = writes
        self._memory: dict[int, dict[str, Tensor]] = {}
        if folder is not None and writes:
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Keeps a checkpoint, whole or not at all, under its number."""
        if self._folder is None:
            self._memory[number] = {name: tensor.clone() for name, tensor in state.items()}
        elif self._writes:
            path = self._path(number)
            partial = path.with_suffix(f".partial-{os.getpid()}")
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
            os.replace(partial, path)
        self._forget(number)

    def load(self, number: int) -> dict[str, Tensor]:
        """The checkpoint of that number, as it was kept."""
        if self._folder is None:
            return {name: tensor.clone() for name, tensor in self._memory[number].items()}
        return load_file(self._path(number))

    def numbers(self) -> list[int]:
        """Of the checkpoints that are kept, in order."""
        if self._folder is None:
            return sorted(self._memory)
        return sorted(
            int(path.stem.partition("-")[2]) for path in self._folder.glob("c-*.safetensors")
        )

    def _forget(self, newest: int) -> None:
        if self.strategy == "random":
            return
        # One before the newest stays: a run that goes on may be asked for it in its last round.
        keep = {0} if self.strategy == "initial" else {newest, newest - 1}
        for number in self.numbers():
            if number in keep:
                continue
            if self._folder is None:
                del self._memory[number]
            elif self._writes:
                self._path(number).unlink()

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"c-{number}.safetensors"
