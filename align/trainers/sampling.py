# pyright: basic
"""Orders of the rows that TRL's trainer cannot give: by length, and those of a prompt together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from align.tokens.dataset import scored_columns
from align.trainers.base import TrainerBase

# Groups that are looked through for one that fits into what is left of a batch.
LOOK_AHEAD = 256


class GroupedSampler(Sampler[int]):
    """Every pair once, with the pairs of one group in one batch wherever they fit.

    Groups come in random order. A batch begins with the next one and is filled with the largest
    that fit whole among those that follow; when none does, a group is torn to fill it up.

    Args:
        groups: the group of each pair.
        batch_size: pairs of one device and optimizer step.
        seed: of the order; each epoch has its own.
    """

    def __init__(self, groups: Sequence[Any], batch_size: int, seed: int) -> None:
        self._members: dict[Any, list[int]] = {}
        for pair, group in enumerate(groups):
            self._members.setdefault(group, []).append(pair)
        self._pairs = len(groups)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._pairs

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        members = list(self._members.values())
        waiting = [
            list(members[g]) for g in torch.randperm(len(members), generator=generator).tolist()
        ]
        # Taken from the end, which is cheap in a list.
        waiting.reverse()
        while waiting:
            room = self._batch_size
            look_ahead = 1
            while room and waiting:
                nearest = range(len(waiting) - 1, max(len(waiting) - 1 - look_ahead, -1), -1)
                fitting = [i for i in nearest if len(waiting[i]) <= room]
                if fitting:
                    group = waiting.pop(max(fitting, key=lambda i: len(waiting[i])))
                else:
                    group, waiting[-1] = waiting[-1][:room], waiting[-1][room:]
                room -= len(group)
                look_ahead = LOOK_AHEAD
                yield from group


class RowSampling(TrainerBase):
    """The part of the trainer that orders the rows of an epoch."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        if strategy == "group_by_prompt":
            known = "group_id" in dataset.column_names
            # The same question about another picture is another prompt.
            names = ["group_id"] if known else [*scored_columns(dataset, self.kind.ids[:1])]
            columns = [dataset[name] for name in names]
            groups: Any = [
                tuple(tuple(g) if isinstance(g, list) else g for g in row)
                for row in zip(*columns, strict=True)
            ]
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupedSampler(groups, self.args.train_batch_size, seed)
        if strategy == "group_by_length":
            lengths = [self.kind.longest(row) for row in self.kind.id_rows(dataset)]
            return LengthGroupedSampler(batch_size, lengths=lengths)
        given: Any = train_dataset
        return super()._get_train_sampler(given)
