# pyright: basic
"""What the parts of the trainer stand on: TRL's trainer, shared state, the one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DPOTrainer

from align.forest import completion_logps
from align.objectives import Objective
from align.reference import Identity
from align.trainers.guards import StopOnSignal
from align.trainers.metrics import SumsOverCounts
from align.types import Logps, Pair


class TrainerBase(DPOTrainer):
    """`trl.DPOTrainer` with our forward pass.

    Attributes:
        objective: the loss.
        identities: who the scored roles are, by role.
    """

    # Left open by transformers and TRL, whose annotations admit None and bare modules.
    model: Any
    args: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    objective: Objective
    identities: dict[str, Identity]

    _sources: dict[str, Any]
    _start: Identity
    _optional_columns: set[str]
    _row_count: int
    _row_tables: list[Dataset]
    _train_sums: SumsOverCounts
    _tokens_here: int
    _signal: StopOnSignal

    def _logps(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Pair[Logps], Any]:
        """The one seam through which log-probs are computed: padded rows, TRL's chunked LM head."""
        completion_mask = inputs["completion_mask"]
        extra = {"output_router_logits": True} if self.aux_loss_enabled and model.training else {}
        with self.accelerator.autocast(), self._checkpointing_only_with_grad():
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=inputs["input_ids"].masked_fill(completion_mask == 0, -100),
                use_cache=False,
                fused_lm_head=True,
                **extra,
            )
        # Prompt-learning adapters put virtual tokens in front of the rows' own S-1 slots.
        token_logps = outputs.log_probs[:, -(completion_mask.shape[1] - 1) :]
        chosen, rejected = (
            completion_logps(token, mask)
            for token, mask in zip(token_logps.chunk(2), completion_mask.chunk(2), strict=True)
        )
        return Pair(chosen, rejected), outputs

    def _checkpointing_only_with_grad(self) -> Any:
        # Reentrant checkpointing warns, needlessly, when it runs without gradient.
        if torch.is_grad_enabled():
            return contextlib.nullcontext()
        return disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
