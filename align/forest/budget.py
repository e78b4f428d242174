"""How many tokens one forward pass may hold: found by what passes are seen to take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

# The rest is for later batches, fragmentation, and what else runs on the machine.
SAFE_SHARE = 0.85
# A budget is good enough when the next one worth trying is less than this much larger.
WORTH_TRYING = 1.1
# The kernel's record of a process's peak memory; writing 5 begins a new one.
NEW_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def largest_budget(
    peak_of: Callable[[int], int | None], free: int, smallest: int, largest: int
) -> int | None:
    """The largest token budget whose passes stay within the free memory, or None.

    Memory grows at most in proportion to tokens, so a pass that would exceed the limit by that
    measure is never tried: on a CPU, trying it could get the process killed.

    Args:
        peak_of: budget -> bytes that a pass takes, or None when it failed.
        free: bytes.
        smallest: tokens of the longest pair, which is never cut.
        largest: tokens of a batch of the longest pairs; more is never asked for.
    """
    limit = int(SAFE_SHARE * free)
    peak = peak_of(smallest)
    if peak is None or peak > limit:
        return None
    budget, ceiling = smallest, largest
    while budget < ceiling:
        by_memory = int(budget * limit / max(peak, 1))
        candidate = min(2 * budget, by_memory, ceiling)
        if candidate < min(WORTH_TRYING * budget, largest):
            break
        taken = peak_of(candidate)
        if taken is None or taken > limit:
            ceiling = (budget + candidate) // 2
        else:
            budget, peak = candidate, taken
    return budget


def free_memory(device: torch.device) -> int:
    """Bytes that a pass could take on a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `work` takes at its fullest, beyond what was there; None where they do not do.

    Raises:
        RuntimeError: it failed for another reason.
    """
    start = _begin_peak(device)
    try:
        work()
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        # How the CPU's allocator says it.
        if "can't allocate memory" not in str(error):
            raise
        return None
    return max(_peak(device) - start, 1)


def _begin_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        NEW_PEAK.write_text("5")
    return psutil.Process().memory_info().rss


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        (line,) = [one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    # Elsewhere than on Linux: what is resident after the pass.
    return psutil.Process().memory_info().rss
