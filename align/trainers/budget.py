# pyright: basic
"""`token_budget: auto`: the largest budget that fits, found by trying the longest rows first."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import Any

import torch
from datasets import IterableDataset

from align.errors import MachineError, RecipeError
from align.forest.attention import attending
from align.forest.budget import free_memory, largest_budget, peak_of
from align.trainers.base import TrainerBase

logger = logging.getLogger(__name__)

# Adam's two moments in float32, and one gradient bucket of DDP, for each trained parameter.
LATER_BYTES = 12


class BudgetSearch(TrainerBase):
    """The part of the trainer that settles how many tokens one forward pass may hold."""

    def _token_budget(self) -> int | None:
        """`args.token_budget`, with `auto` replaced by what was found on this machine.

        Raises:
            RecipeError: `auto` where the rows are a stream.
            MachineError: not even the longest row fits.
        """
        if self.args.token_budget != "auto":
            return self.args.token_budget
        if isinstance(self.train_dataset, IterableDataset):
            raise RecipeError(
                "token_budget: auto looks for the longest rows, and a stream does not know "
                "its own. Set a number of tokens."
            )
        length = [self.kind.tokens(row) for row in self.kind.id_rows(self.train_dataset)]
        longest = sorted(range(len(length)), key=lambda i: -length[i])
        rows = [self.train_dataset[i] for i in longest[: self.args.per_device_train_batch_size]]
        smallest, largest = (_most_tokens(self.data_collator(some)) for some in (rows[:1], rows))
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        free = free_memory(self.accelerator.device) - LATER_BYTES * trained

        def tried(budget: int) -> int | None:
            peak = self._peak(rows, budget)
            logger.info("token_budget %d: %s bytes", budget, "too many" if peak is None else peak)
            return peak

        found = largest_budget(tried, free, smallest, largest)
        if self.accelerator.num_processes > 1:
            budgets: Any = torch.tensor([found or 0], device=self.accelerator.device)
            everywhere: Any = self.accelerator.gather(budgets)
            found = int(everywhere.min()) or None
        if found is None:
            raise MachineError(
                f"token_budget: auto: the longest {self.kind.noun} ({smallest} tokens) does not "
                f"fit into the {free / 2**30:.1f} GiB that are free. Lower data.max_length, train "
                "an adapter, or switch gradient_checkpointing on."
            )
        logger.info("token_budget: auto is %d tokens here.", found)
        return found

    def _peak(self, rows: list[dict[str, Any]], budget: int) -> int | None:
        """Bytes that the fullest pass over the rows takes; None when memory does not suffice."""
        cut = replace(self.data_collator, token_budget=budget)
        part = max(cut(rows)["parts"], key=lambda one: one["pack"].computed_tokens)
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                return peak_of(lambda: self._try(self._prepare_inputs(part)), device)
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
                policy, _, _ = self._read(model, part)
                sides = self.kind.sides(policy)
                totals = [side.total().sum() for side in sides]
                totals += [side.divergence.sum() for side in sides if side.divergence is not None]
                torch.stack(totals).sum().backward()
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
            model.train(was_training)


def _most_tokens(batch: dict[str, Any]) -> int:
    return max(part["pack"].computed_tokens for part in batch["parts"])
