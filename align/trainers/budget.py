# pyright: basic
"""`token_budget: auto`: the largest budget that fits, found by trying the longest rows first."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from align.errors import MachineError, RecipeError
from align.forest.attention import attending
from align.trainers.base import TrainerBase

logger = logging.getLogger(__name__)

# The rest is for later batches, fragmentation, and what else runs on the machine.
SAFE_SHARE = 0.85
# A budget is good enough when the next one worth trying is less than this much larger.
WORTH_TRYING = 1.1
# Adam's two moments in float32, and one gradient bucket of DDP, for each trained parameter.
LATER_BYTES = 12
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
        peak_of: budget -> bytes that a forward and backward pass takes, or None when it failed.
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


class BudgetSearch(TrainerBase):
    """The part of the trainer that settles how many tokens one forward pass may hold."""

    def _token_budget(self) -> int | None:
        """`args.token_budget`, with `auto` replaced by what was found on this machine.

        Raises:
            RecipeError: `auto` where weights are sharded.
            MachineError: not even the longest pair fits.
        """
        if self.args.token_budget != "auto":
            return self.args.token_budget
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise RecipeError(
                "token_budget: auto tries passes on whole weights, and this launch shards them. "
                "Set a number of tokens."
            )
        columns: list[Any] = [
            self.train_dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        ]
        length = [
            2 * len(prompt) + len(chosen) + len(rejected)
            for prompt, chosen, rejected in zip(*columns, strict=True)
        ]
        longest = sorted(range(len(length)), key=lambda i: -length[i])
        rows = [self.train_dataset[i] for i in longest[: self.args.per_device_train_batch_size]]
        smallest, largest = (_most_tokens(self.data_collator(some)) for some in (rows[:1], rows))
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        free = _free(self.accelerator.device) - LATER_BYTES * trained

        def peak_of(budget: int) -> int | None:
            peak = self._peak(rows, budget)
            logger.info("token_budget %d: %s bytes", budget, "too many" if peak is None else peak)
            return peak

        found = largest_budget(peak_of, free, smallest, largest)
        if self.accelerator.num_processes > 1:
            budgets: Any = torch.tensor([found or 0], device=self.accelerator.device)
            everywhere: Any = self.accelerator.gather(budgets)
            found = int(everywhere.min()) or None
        if found is None:
            raise MachineError(
                f"token_budget: auto: the longest pair ({smallest} tokens) does not fit into the "
                f"{free / 2**30:.1f} GiB that are free. Lower data.max_length, train an adapter, "
                "or switch gradient_checkpointing on."
            )
        logger.info("token_budget: auto is %d tokens here.", found)
        return found

    def _peak(self, rows: list[dict[str, Any]], budget: int) -> int | None:
        """Bytes that the fullest pass over the rows takes; None when memory does not suffice."""
        cut = replace(self.data_collator, token_budget=budget)
        part = max(cut(rows)["parts"], key=lambda one: one["pack"].computed_tokens)
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            start = _begin_peak(device)
            try:
                self._try(self._prepare_inputs(part))
                return max(_peak(device) - start, 1)
            except (torch.OutOfMemoryError, MemoryError):
                return None
            except RuntimeError as error:
                # How the CPU's allocator says it.
                if "can't allocate memory" not in str(error):
                    raise
                return None
            finally:
                self.model.zero_grad(set_to_none=True)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()

    def _try(self, part: dict[str, Any]) -> None:
        model = self.model
        was_training = model.training
        checkpointing = self.args.gradient_checkpointing
        if checkpointing:
            model.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        try:
            model.train()
            with attending(model, part["pack"].implementation):
                policy, _ = self._logps(model, part)
                (policy.chosen.total() - policy.rejected.total()).sum().backward()
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
            model.train(was_training)


def _most_tokens(batch: dict[str, Any]) -> int:
    return max(part["pack"].computed_tokens for part in batch["parts"])


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


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
