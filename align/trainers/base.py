# pyright: basic
"""What the parts of the trainer stand on: TRL's trainer, shared state, the one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DPOTrainer

from align.forest import Choice, Pack
from align.forest.attention import attending
from align.forest.lm_head import Predictions
from align.forest.model import EdgeOutput, read_pack
from align.reference import Identity
from align.trainers.guards import StopOnSignal
from align.trainers.metrics import SumsOverCounts
from align.trainers.row_kind import RowKind
from align.types import OF_VOCABULARY


class TrainerBase(DPOTrainer):
    """`trl.DPOTrainer` with our forward pass.

    Attributes:
        kind: what a row of the data is.
        objective: the loss.
        identities: who the scored roles are, by role.
        backend: how log-probs are computed, and why so.
    """

    # Left open by transformers and TRL, whose annotations admit None and bare modules.
    model: Any
    args: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    kind: RowKind[Any]
    objective: Any
    identities: dict[str, Identity]
    backend: Choice

    _layout: Any
    _sources: dict[str, Any]
    _start: Identity
    _optional_columns: set[str]
    _row_count: int
    _streams: int
    _row_tables: list[Dataset]
    _train_sums: SumsOverCounts
    _adapter_at_start: dict[str, torch.Tensor]
    _live: dict[str, Any]
    # A tensor on the device once there was a step.
    _tokens_here: int | torch.Tensor
    _computed_here: int
    _signal: StopOnSignal

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`, but autocast keeps no 16-bit copy of every float32 weight.

        A pass reads each weight once, so its cache saves nothing; with gradient checkpointing it
        would hold all of them at once, 2 bytes a parameter.
        """
        super().create_accelerator_and_postprocess()
        accelerator: Any = self.accelerator
        accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)

    @property
    def scored_kind(self) -> RowKind[Any]:
        """What a row is to the roles: all of it that they are asked about."""
        return self.kind

    def _logps(
        self,
        model: Any,
        part: Mapping[str, Any],
        *,
        statistics: bool = False,
        collision: bool = False,
        reference: Predictions | None = None,
        hidden: bool = False,
    ) -> tuple[Any, EdgeOutput]:
        """The one seam through which log-probs are computed: a pack in, edges out.

        The backward pass of a checkpointed model attends again, so whoever calls `backward` also
        does it inside `attending`. What is asked for beside log-probs is as in `read_pack`.
        """
        pack: Pack = part["pack"]
        router_logits = bool(self.aux_loss_enabled and model.training)
        with (
            self.accelerator.autocast(),
            attending(model, pack.implementation),
            self._checkpointing_only_with_grad(),
        ):
            output = read_pack(
                model,
                pack,
                statistics=statistics,
                collision=collision,
                reference=reference,
                hidden=hidden,
                router_logits=router_logits,
                pictures=part.get("pictures"),
            )
        assert output.logps is not None
        found = {name: getattr(output, name) for name in OF_VOCABULARY}
        beside = {name: edge for name, edge in found.items() if edge is not None}
        return self.kind.logps(pack, output.logps, beside), output

    def _read(
        self,
        model: Any,
        part: Mapping[str, Any],
        *,
        statistics: bool = False,
    ) -> tuple[Any, EdgeOutput, dict[str, Any]]:
        """What the objective is told of a part: the policy's, the pass's, and the roles' asked."""
        raise NotImplementedError

    def _checkpointing_only_with_grad(self) -> Any:
        # Reentrant checkpointing warns, needlessly, when it runs without gradient.
        if torch.is_grad_enabled():
            return contextlib.nullcontext()
        return disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)

    def _prepare_input(self, data: Any) -> Any:
        # Under DeepSpeed transformers gives numbers the type of the weights, 16 bits, which would
        # round the roles' log-probs, scores and weights: only pictures go through the model.
        if isinstance(data, (Pack, torch.Tensor)):
            return data.to(self.args.device)
        if isinstance(data, Mapping) and "pictures" in data:
            of_trl = super()._prepare_input
            pictures = {name: of_trl(value) for name, value in data["pictures"].items()}
            rest = {name: value for name, value in data.items() if name != "pictures"}
            return self._prepare_input(rest) | {"pictures": pictures}
        return super()._prepare_input(data)
