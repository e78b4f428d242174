# pyright: basic
"""What several processes decide together: one of them looks, and all of them run as many passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from align.errors import AlignError

T = TypeVar("T")

# Linux keeps what it knows of an NFS folder for a minute at most (acdirmax).
SHOWN_WITHIN = 90.0
LOOK_EVERY = 0.5


def of_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What `decide` says on the main process, on every process; to be called by all of them.

    A file on a shared file system is hashed by one process then, and processes that see its folder
    at different times do not go different ways.

    Args:
        accelerator: of the processes.
        decide: called on the main process alone; what it returns is sent to the others.

    Raises:
        AlignError: `decide` raised it; every process raises it.
    """
    if accelerator.num_processes == 1:
        return decide()
    said: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            said[0] = decide()
        except AlignError as error:
            said[1] = error
    broadcast_object_list(said, from_process=0)
    if said[1] is not None:
        raise said[1]
    return said[0]


def same_number(accelerator: Accelerator, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many parts as the rank with the most has; those on top count for nothing.

    Ranks that sum gradients, gather rows or gather sharded weights in each pass have to make the
    same number of passes.

    Args:
        accelerator: of the processes.
        parts: of one batch, each with `row_index`; at least one.
    """
    if accelerator.num_processes == 1:
        return parts
    here = torch.tensor([len(parts)], device=accelerator.device)
    most: Any = accelerator.gather(here)
    last = parts[-1]
    empty = last | {"counts": torch.zeros(last["row_index"].numel(), device=here.device)}
    return parts + [empty] * (int(most.max()) - len(parts))


def seen(path: Path, within: float = SHOWN_WITHIN) -> bool:
    """Whether something that another process has published is there.

    A machine may remember for a while that a path of a shared file system was not there.

    Args:
        path: what was published.
        within: seconds to look again for.
    """
    until = time.monotonic() + within
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_EVERY)
        if path.parent.is_dir():
            # Reading a folder makes the machine ask what is in it.
            list(path.parent.iterdir())
    return True
