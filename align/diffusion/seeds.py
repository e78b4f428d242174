"""Random numbers that belong to what they are drawn for, and to no generator that moves.

A generator is made from a name: the seed of the run and what is drawn. Nothing else draws from it,
so a run that goes on from a checkpoint draws what it would have drawn, and no generator's state has
to be saved; who must agree on a draw (every process on the reference) leaves the process out of the
name, who must differ puts it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_for(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator of its own: the same numbers on every machine and device."""
    text = "/".join(str(part) for part in (seed, *name))
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(value)


def noise_of(seed: int, about: str, keys: Sequence[int], shape: Sequence[int]) -> Tensor:
    """[len(keys), *shape] float32 standard normal; a row depends on its key, not on its batch."""
    rows = [torch.randn(*shape, generator=generator_for(seed, about, key)) for key in keys]
    return torch.stack(rows)
