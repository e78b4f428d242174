# pyright: basic
"""The trainer on weights that may be sharded: `sharding` at the places where it has to happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from align.errors import MachineError
from align.forest.head import EdgeLogps
from align.reference import START, Identity
from align.trainers.base import TrainerBase
from align.trainers.sharding import (
    forget_gathered,
    here,
    refuse_unknown_sharding,
    shard_early,
    sharded_beforehand,
    shards_weights,
    whole_digest,
)


class ShardedWeights(TrainerBase):
    """The part of the trainer that shards the policy before anything is scored by it."""

    _start_dtype: torch.dtype

    @property
    def _edge_logps(self) -> EdgeLogps:
        """What computes log-probs from hidden states."""
        raise NotImplementedError

    def _identity(self, source: str, weights: str, dtype: torch.dtype) -> Identity:
        raise NotImplementedError

    def _digest(self, model: nn.Module, without: Sequence[str] = ()) -> str:
        return whole_digest(model, self.accelerator, without)

    def _started_from(self) -> Identity:
        """Who the policy is before training; while its weights are whole.

        Raises:
            RecipeError: the launch shards weights in a way that cannot be scored.
        """
        refuse_unknown_sharding(self.accelerator, self.args, list(self._sources))
        self._start_dtype = self.model.dtype
        return self._identity(START, self._digest(self.model), self._start_dtype)

    def _shard(self) -> None:
        if shards_weights(self.accelerator):
            self.model = shard_early(self.model, self.accelerator, self._edge_logps)
            self.model_wrapped = self.model
            # An evaluation before training would ask accelerate to shard it.
            self.accelerator._models.append(self.model)

    def _forget_gathered(self, model: nn.Module | None = None) -> None:
        if shards_weights(self.accelerator):
            forget_gathered(self.model if model is None else model)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if not shards_weights(self.accelerator):
            return super()._prepare_for_training(*args, **kwargs)
        self._forget_gathered()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if any(here(parameter) is parameter for parameter in trained):
            raise MachineError(
                f"torch {torch.__version__} keeps some trained weights gathered, and an optimizer "
                "built on them would train nothing. Use torch 2.13 or later for FSDP2."
            )
        with sharded_beforehand(self.accelerator, self.model):
            return super()._prepare_for_training(*args, **kwargs)
