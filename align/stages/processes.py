"""This process among those of its launch."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState


def this_process(use_cpu: bool, timeout: int) -> PartialState:
    """The state of this process, in a group whose processes wait for each other so long.

    To be called before anything else asks for it: a group's timeout is that of its making, and
    NCCL's own is ten minutes, which the first process may need to tokenise or to measure the start.

    Args:
        use_cpu: though a GPU is there. Several CPU processes find each other only when it is said.
        timeout: seconds.
    """
    return PartialState(
        cpu=use_cpu or not torch.accelerator.is_available(), timeout=timedelta(seconds=timeout)
    )
