"""What a training run makes a GPU wait for, seen on a CPU: who asked for a number, and how often.

A number that Python reads (`item`, `tolist`, a tensor in an `if`), a shape that hangs on values
(`nonzero`, a boolean index, `repeat_interleave` without its size) and a copy between host and
device all wait until the device has done everything it was given.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select")
UNIQUE = ("_unique", "_unique2", "unique_dim", "unique_consecutive")
TO_HOST = ("tolist", "cpu", "numpy", "__array__")
# Numbers that are sent from the host wait too.
FROM_HOST = ("new_tensor", "tensor")
# CUDA's products know floating and complex types only.
PRODUCTS = ("dot", "vdot", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "addr", "ger")
# Batches are made on the host.
HOST = (
    "torch/utils/data/",
    "accelerate/data_loader.py",
    "trainers/collator.py",
    "forest/chains.py",
)
ROOT = str(Path(__file__).resolve().parents[3])


class Watched:
    """Inside, what is asked of tensors is counted by who asked.

    Attributes:
        syncs: (file, function, what) -> times.
        products: matrix products of whole numbers, likewise.
    """

    def __init__(self) -> None:
        self.syncs: Counter[tuple[str, str, str]] = Counter()
        self.products: Counter[tuple[str, str, str]] = Counter()
        self._modes: list[Any] = [_Functions(self), _Operations(self)]

    def __enter__(self) -> "Watched":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*raised)

    def count(self, counter: Counter[tuple[str, str, str]], what: str) -> None:
        place = _asked_by()
        if place is not None:
            counter[*place, what] += 1


class _Functions(TorchFunctionMode):
    """Copies to and from the host, which are nothing on a CPU and so reach no operation."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in TO_HOST + FROM_HOST:
            self.watched.count(self.watched.syncs, name)
        return function(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        tensors = [one for one in tree_leaves(args) if torch.is_tensor(one)]
        if name.rstrip("_") in PRODUCTS and not all(
            one.is_floating_point() or one.is_complex() for one in tensors
        ):
            self.watched.count(self.watched.products, name)
        by_bool = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        of_sizes = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in READS + UNIQUE or by_bool or of_sizes:
            self.watched.count(self.watched.syncs, name)
        return function(*args, **kwargs)


def _asked_by() -> tuple[str, str] | None:
    """File and function, the innermost outside torch; None where batches are made."""
    found: tuple[str, str] | None = None
    frame: Any = sys._getframe(3)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in HOST):
            return None
        if found is None and "/torch/" not in file and file != __file__:
            ours = file.startswith(f"{ROOT}/align/")
            short = file.removeprefix(f"{ROOT}/") if ours else "/".join(Path(file).parts[-2:])
            found = short, frame.f_code.co_name
        frame = frame.f_back
    return found
