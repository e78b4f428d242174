# pyright: basic
"""What a run asks of one of TRL's own trainers, whose loss stays TRL's.

Checkpoints are sealed and verified, a signal stops in good order, a number that nothing can be
learnt from stops at once and names its rows, and a resumed run logs what the uninterrupted one
would have logged.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import Tensor

from align.errors import DataError, NumericalError
from align.reference import digest, rows_digest, tokenizer_digest
from align.trainers.checkpoints import SealedCheckpoints
from align.trainers.guards import StopOnBadWeights, StopOnSignal
from align.trainers.precision import (
    adapter_in_float32,
    refuse_weights_that_stay,
    unrounded_adapters,
)
from align.trainers.settings import trained_settings
from align.trainers.sharding import whole_digest

logger = logging.getLogger(__name__)

ROW_INDEX = "row_index"
LENGTH = "length"  # transformers' name for what `group_by_length` sorts by
PLACE = ("source", "row")
SHOWN_ROWS = 8
# Streams number their rows from multiples of this on, tables below it.
STREAM_ROWS = 2**40


class Guarded(SealedCheckpoints):
    """To be put in front of one of TRL's trainers, as a part of it.

    Whoever builds one calls `_begin` before TRL's constructor and `_begun` after it.
    """

    model: Any
    kind: ClassVar[str]
    """The recipe's word for what is trained."""
    read_columns: ClassVar[tuple[str, ...]]
    """Columns that determine what is learnt; those that the data do not have are left out."""

    def _begin(self, allow_change: Collection[str]) -> list[Any]:
        """The callbacks to train with."""
        self._allow_change = tuple(allow_change)
        self._signal = StopOnSignal()
        self._places: list[str] = []
        self._loss_sum, self._logged_step = 0.0, 0
        self._last_rows: list[int] = []
        self._last_loss = math.nan
        return [StopOnBadWeights(), self._signal]

    def _begun(self, processing_class: Any) -> None:
        adapter_in_float32(self.model)
        refuse_weights_that_stay(self)
        weights = whole_digest(self.model, self.accelerator)
        self._start = digest([weights, tokenizer_digest(processing_class)])

    def _numbered(self, dataset: Dataset, places: Sequence[str]) -> Dataset:
        """Tokenised rows with their numbers, and with the length that they are sorted by.

        Args:
            dataset: the rows.
            places: where each of them came from, for people.
        """
        first = len(self._places)
        self._places += places
        sides = [name for name in ("chosen_ids", "rejected_ids") if name in dataset.column_names]
        columns: Any = [dataset[name] for name in sides or ["input_ids"]]
        lengths = [max(map(len, ids)) for ids in zip(*columns, strict=True)]
        more = {ROW_INDEX: list(range(first, first + len(dataset))), LENGTH: lengths}
        return concatenate_datasets([dataset, Dataset.from_dict(more)], axis=1)

    @property
    def changeable(self) -> Collection[str]:
        """Names of settings that may differ from the checkpoint that a run resumes from."""
        return self._allow_change

    def settings(self) -> dict[str, Any]:
        """Everything a resumed run must have in common with the one that wrote the checkpoint."""
        return {
            "kind": self.kind,
            "rows": self._rows(),
            "policy": self._start,
            "center_rewards_coefficient": getattr(self.args, "center_rewards_coefficient", None),
            **trained_settings(self),
        }

    def _rows(self) -> str:
        table: Any = self.train_dataset
        if isinstance(table, IterableDataset):
            return "a stream, whose rows are not known"
        return rows_digest(
            table, [name for name in self.read_columns if name in table.column_names]
        )

    def _kept(self) -> dict[str, Any]:
        own: Any = self
        return {
            "metrics": own._metrics["train"],
            "tokens": own._total_train_tokens,
            "loss_sum": self._loss_sum,
            "logged_step": self._logged_step,
        }

    def _find_again(self, kept: Mapping[str, Any]) -> None:
        own: Any = self
        own._metrics["train"] = defaultdict(list, kept["metrics"])
        own._total_train_tokens = kept["tokens"]
        self._loss_sum, self._logged_step = kept["loss_sum"], kept["logged_step"]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        signature: Any = self._signature_columns
        more = (ROW_INDEX, LENGTH, *self.read_columns)
        signature += [name for name in more if name not in signature]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """TRL's loss of a batch; one that is not finite stops the run before the step is taken."""
        # A user's own collator does not know of it.
        rows = inputs.pop(ROW_INDEX).tolist() if ROW_INDEX in inputs else []
        found: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = found[0] if return_outputs else found
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(
                f"Step {self.state.global_step + 1}: the loss of a batch is {value}. The optimizer "
                f"step was not taken. Look at its rows, {self._named(rows)}, and at the learning "
                "rate and precision."
            )
        if model.training:
            self._last_rows, self._last_loss = rows, value
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in TRL; what transformers forgets when a run is resumed between two logs is kept."""
        loss = super().training_step(*args, **kwargs)
        self._loss_sum += float(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL, with the mean loss since the last log of the whole run."""
        if "loss" in logs and self.model.training:
            total: Any = torch.tensor(self._loss_sum, dtype=torch.float64)
            if self.accelerator.num_processes > 1:
                total = self.accelerator.reduce(total.to(self.accelerator.device), "mean")
            logs["loss"] = float(total) / max(1, self.state.global_step - self._logged_step)
            self._loss_sum, self._logged_step = 0.0, self.state.global_step
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # An fp16 scaler meets infinite gradients on purpose and skips the step itself.
        if grad_norm is None or self.accelerator.scaler is not None:
            return grad_norm
        value = float(grad_norm)
        if math.isfinite(value) and (value > 0 or self._last_loss < torch.finfo(torch.float32).eps):
            return grad_norm
        how_on = (
            "Nothing reaches a trained weight: the adapter may be frozen or disabled."
            if value == 0
            else "Lower the learning rate, or train in a wider precision."
        )
        raise NumericalError(
            f"Step {self.state.global_step + 1}: the gradient's norm is {value:g}. No step was "
            f"taken. {how_on} Last rows: {self._named(self._last_rows)}."
        )

    def _named(self, rows: list[int]) -> str:
        if not rows:
            return "which the data collator did not number"
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        return ", ".join(map(self._place, rows[:SHOWN_ROWS])) + more

    def _place(self, row: int) -> str:
        if row >= STREAM_ROWS:
            return f"row {row % STREAM_ROWS} of a stream"
        return self._places[row]


class GuardedTrainer(Guarded):
    """To be put in front of one of TRL's trainers, which takes the other arguments.

    Args:
        train_dataset: tokenised rows with the columns that TRL's trainer takes, and `source` and
            `row`, where each of them came from.
        eval_dataset: the same, or None.
        processing_class: the tokenizer; it can pad.
        allow_change: names of settings that may differ from the checkpoint that is resumed from.

    Raises:
        DataError: there is no row.
        NumericalError: training meets a zero or non-finite number.
    """

    def __init__(
        self,
        model: Any,
        *,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: Any,
        allow_change: Collection[str] = (),
        callbacks: Collection[Any] = (),
        **of_trl: Any,
    ) -> None:
        if len(train_dataset) == 0:
            raise DataError("The training data has no rows.")
        own = self._begin(allow_change)
        with unrounded_adapters(model):
            super().__init__(
                model,
                train_dataset=self._numbered(train_dataset, _places(train_dataset)),
                eval_dataset=None
                if eval_dataset is None
                else self._numbered(eval_dataset, _places(eval_dataset)),
                processing_class=processing_class,
                callbacks=[*callbacks, *own],
                **of_trl,
            )
        self._begun(processing_class)


def with_row_index(batch: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A collated batch with the numbers of its rows."""
    batch[ROW_INDEX] = torch.tensor([example[ROW_INDEX] for example in examples])
    return batch


def _places(table: Dataset) -> list[str]:
    columns = zip(*(table[name] for name in PLACE), strict=True)
    return [f"{source}:{row}" for source, row in columns]
