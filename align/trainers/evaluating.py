# pyright: basic
"""Evaluation: every row counts once, and rows that were not there at the start are taken too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from transformers import Trainer

from align.trainers.config import refuse_precomputed_streams
from align.trainers.live import LiveRoles
from align.trainers.metrics import HeldOut, SeenOnce, SumsOverCounts
from align.trainers.ranks import same_number
from align.trainers.records import Records
from align.trainers.rows import RowPreparation, hidden_images


class Evaluating(RowPreparation, LiveRoles, Records):
    """The part of the trainer that evaluates."""

    _eval_sums: SumsOverCounts | None
    _eval_seen: SeenOnce | None
    _held_out: HeldOut

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Adds the batch to the evaluation's sums."""
        loss = torch.zeros((), device=self.accelerator.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            prepared: Any = self._prepare_inputs(inputs)
            # Each part's rows are gathered, which all ranks have to do equally often.
            for part in same_number(self.accelerator, prepared["parts"]):
                share = part["sizes"].sum() / prepared["sizes"].sum()
                loss += self.compute_loss(model, part).detach() * share
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As in `Trainer`, with exact metrics.

        Every row counts once, whatever the batch size and the number of ranks.
        """
        self._eval_sums, self._eval_seen = SumsOverCounts(), SeenOnce(self.accelerator)
        self._held_out = HeldOut()
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._forget_gathered()
        exact = self.kind.derived(self._eval_sums.means())
        exact["num_tokens"] = self._tokens_read()[0]
        if self.compute_metrics is not None and not self.args.prediction_loss_only:
            exact |= self.compute_metrics(self._held_out.prediction(self.accelerator))
        self._eval_sums = self._eval_seen = None
        self._held_out = HeldOut()
        output.metrics.update(
            {
                name
                if name.startswith(f"{metric_key_prefix}_")
                else f"{metric_key_prefix}_{name}": value
                for name, value in exact.items()
            }
        )
        return output

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As in TRL; a data set not given at construction is tokenised and scored first.

        Raises:
            RecipeError: a role is the policy before training, which cannot be had again.
        """
        refuse_precomputed_streams(self.args, eval_dataset)
        prepared: Any = eval_dataset
        if isinstance(eval_dataset, Mapping):
            prepared = {k: self._evaluable(v, k) for k, v in eval_dataset.items()}
        elif eval_dataset is not None and not isinstance(eval_dataset, str):
            prepared = self._evaluable(eval_dataset, metric_key_prefix)
        return Trainer.evaluate(self, prepared, ignore_keys, metric_key_prefix)

    def _evaluable(self, dataset: Any, name: str) -> Any:
        """A data set tokenised and scored, where it is not yet."""
        if isinstance(dataset, IterableDataset):
            self.accelerator.dataloader_config.dispatch_batches = False
            return self._prepare_dataset(dataset, self.processing_class, self.args, name)
        if "row_index" not in dataset.column_names:
            dataset = self._prepare_dataset(
                hidden_images(dataset), self.processing_class, self.args, name
            )
        if any(self.kind.scores.of(role)[0] not in dataset.column_names for role in self._sources):
            dataset = self._with_roles(dataset)
        return dataset
