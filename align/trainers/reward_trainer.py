# pyright: basic
"""`RewardTrainer` where `trl.RewardTrainer` stands: its rows and its loss, with guarded runs.

Rows are prepared by TRL; what is ours is that they keep their numbers, that checkpoints are sealed
and verified, and that a number that nothing can be learnt from stops the run and names its rows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.reward_trainer import RewardTrainer as TRLRewardTrainer

from align.errors import DataError
from align.trainers.guarded import ROW_INDEX, STREAM_ROWS, Guarded
from align.trainers.precision import unrounded_adapters
from align.trainers.reward import WholePairs

__all__ = ["RewardConfig", "RewardTrainer"]

PLACED = "row_of_given"


class RewardTrainer(Guarded, TRLRewardTrainer):
    """`trl.RewardTrainer`: a script for it runs with its import changed.

    Args:
        model: a path, a hub id or a sequence classifier with one output, as in TRL.
        args: a `trl.RewardConfig`.
        data_collator: as in TRL; rows of a collator of one's own cannot be named in messages.
        train_dataset: TRL's preference format, raw or with `chosen_ids` and `rejected_ids`, and
            optionally `margin`; a stream too.
        eval_dataset: the same, or a mapping of them.
        processing_class: the tokenizer; read from the model's folder unless given.
        callbacks: as in TRL.
        allow_change: names of settings that may differ from the checkpoint that is resumed from.
        of_trl: TRL's other arguments.

    Raises:
        DataError: no row is left to train on.
        NumericalError: training meets a zero or non-finite number.
    """

    kind = "reward"
    read_columns: ClassVar[tuple[str, ...]] = ("chosen_ids", "rejected_ids", "margin")
    _tag_names = ["align", "trl", "reward-trainer"]  # noqa: RUF012 - TRL's name and type

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[Any] | None = None,
        *of_trl: Any,
        allow_change: Collection[str] = (),
        **named: Any,
    ) -> None:
        own = self._begin(allow_change)
        self._streams = 0
        with unrounded_adapters(model):
            super().__init__(
                model,
                args,
                data_collator,
                train_dataset,
                eval_dataset,
                processing_class,
                compute_metrics,
                [*(callbacks or []), *own],
                *of_trl,
                **named,
            )
        if type(self.data_collator) is DataCollatorForPreference:
            self.data_collator = WholePairs(**vars(self.data_collator))
        self._begun(self.processing_class)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: RewardConfig, dataset_name: str
    ) -> Any:
        """TRL's rows, numbered in the order of the data set; what is too long is left out before.

        Raises:
            DataError: no row is left.
        """
        columns = next(iter(dataset), None)
        if columns is None:
            raise DataError(f"The {dataset_name} data has no rows.")
        if ROW_INDEX in columns:
            return dataset
        if isinstance(dataset, IterableDataset):
            self._streams += 1
            first = self._streams * STREAM_ROWS
            numbered = dataset.map(lambda _, i: {ROW_INDEX: first + i}, with_indices=True)
            return super()._prepare_dataset(numbered, processing_class, args, dataset_name)
        # Under a name of ours, by which rows are found again once TRL has left some out.
        placed = dataset.add_column(PLACED, list(range(len(dataset))))
        made: Any = super()._prepare_dataset(placed, processing_class, args, dataset_name)
        if len(made) == 0:
            raise DataError(
                f"The {dataset_name} data has no row of at most max_length = {args.max_length} "
                "tokens."
            )
        return self._numbered(made, [f"{dataset_name} data:{row}" for row in made[PLACED]])
