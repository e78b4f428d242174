# pyright: basic
"""Another prompt's completion behind each prompt: what KTO estimates its KL term from.

Such a leaf never has a gradient. The reference scores it beforehand, with the row's own
completions; the policy in the pass that measures a step (`coupling`), which scores nothing else, so
an objective that reads `mismatched` measures it and not the policy's own log-probs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from align.errors import RecipeError
from align.objectives.base import logratio
from align.trainers.collator import PreferenceCollator
from align.trainers.group_kind import BOTH, GROUPS, LABEL, MISMATCHED, SCALARS
from align.trainers.objective_trainer import ObjectiveTrainer
from align.trainers.row_kind import RowKind
from align.types import Logps

COLUMN = "mismatched_ids"


class MismatchedLeaves(ObjectiveTrainer):
    """The part of a trainer of groups that scores them; idle unless the objective reads them."""

    @property
    def reads_mismatched(self) -> bool:
        """Whether the objective reads `mismatched`."""
        return "mismatched" in self.objective.needs | self.objective.accepts

    @property
    def scored_kind(self) -> RowKind[Any]:
        """With the mismatched leaves, where the objective reads them."""
        return BOTH if self.reads_mismatched else GROUPS

    def _collator(self, pixels: Any) -> PreferenceCollator:
        plain = super()._collator(pixels)
        return replace(plain, measured=MISMATCHED) if self.reads_mismatched else plain

    def _check_sampling(self) -> None:
        super()._check_sampling()
        if not self.reads_mismatched:
            return
        if self.args.train_sampling_strategy != "sequential":
            raise RecipeError(
                f"Objective {self.objective.name} estimates a KL term from the row before each row "
                "of a batch, which is known where rows come in their order: set "
                "train_sampling_strategy='sequential' (it is "
                f"{self.args.train_sampling_strategy!r}) and shuffle the data set beforehand."
            )
        if self.args.per_device_train_batch_size < 2:
            raise RecipeError(
                f"per_device_train_batch_size is {self.args.per_device_train_batch_size}, and "
                f"objective {self.objective.name} needs the completion of another row of the same "
                "batch: set it to 2 or more."
            )

    def _prepare_stream(
        self, stream: IterableDataset, processing_class: Any, args: Any, name: str
    ) -> IterableDataset:
        prepared = super()._prepare_stream(stream, processing_class, args, name)
        if not self.reads_mismatched or prepared is stream:
            return prepared

        def completed(block: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = block["prompt_ids"], block["completions_ids"]
            return {COLUMN: mismatched_ids(*rows, len(block["prompt_ids"]), args.max_length)}

        return prepared.map(completed, batched=True, batch_size=args.per_device_train_batch_size)

    def _completed(self, dataset: Dataset, args: Any) -> Dataset:
        if COLUMN in dataset.column_names:
            dataset = dataset.remove_columns(COLUMN)
        if not self.reads_mismatched:
            return dataset
        leaves = mismatched_ids(
            dataset["prompt_ids"],
            dataset["completions_ids"],
            args.per_device_train_batch_size,
            args.max_length,
        )
        return dataset.add_column(COLUMN, leaves)  # type: ignore[call-arg]

    @property
    def _pass_measures_itself(self) -> bool:
        return not self.reads_mismatched and super()._pass_measures_itself

    def _measured_parts(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        return batch["measured"] if self.reads_mismatched else super()._measured_parts(batch)

    def _measured_inputs(self, model: Any, part: Mapping[str, Any]) -> Any:
        if not self.reads_mismatched:
            return super()._measured_inputs(model, part)
        asked = self._frozen_logps(part, MISMATCHED)
        policy, _ = self._logps(model, part)
        frozen = asked.get("reference") or MISMATCHED.stored("reference", part, policy)
        # Not computed in this pass, and no number may stand for them.
        unknown = Logps(
            torch.full_like(policy.token[:, :1], torch.nan), torch.ones_like(policy.mask[:, :1])
        )
        read = self._optional_columns & {LABEL, *SCALARS.values()}
        inputs = GROUPS.inputs(unknown, part, dict.fromkeys(self._sources, unknown), read)
        return replace(inputs, mismatched=logratio(policy, frozen))


def mismatched_ids(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    block: int,
    max_length: int | None,
) -> list[list[list[int]]]:
    """For each row's completions, those of the row before it, the first of a block has its last.

    As TRL does it: (x_1, y_1), ..., (x_n, y_n) -> (x_1, y_n), (x_2, y_1), ..., (x_n, y_{n-1}).

    Args:
        prompts: token ids.
        completions: K lists of ids for each prompt; where the row before has fewer, they are used
            again from the first on.
        block: rows of a batch of one device.
        max_length: of prompt and completion; a longer one loses its end, as long as it is not
            within the length of the row's own.
    """
    found: list[list[list[int]]] = []
    for row, (prompt, own) in enumerate(zip(prompts, completions, strict=True)):
        first = row - row % block
        before = row - 1 if row > first else min(first + block, len(completions)) - 1
        others = completions[before]
        room = max(len(ids) for ids in own)
        if max_length is None:
            room = max(len(ids) for ids in others)
        room = max(room, (max_length or 0) - len(prompt))
        found.append([list(others[k % len(others)][:room]) for k in range(len(own))])
    return found
