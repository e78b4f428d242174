# pyright: basic
"""Bradley-Terry reward models, by TRL's RewardTrainer.

    loss = -log sigmoid(r(x, y_chosen) - r(x, y_rejected) - margin)
           + center_rewards_coefficient (r(x, y_chosen) + r(x, y_rejected))^2

Sources: Bradley and Terry, Biometrika 39 (1952) 324; Ouyang et al. 2022, arXiv:2203.02155, eq. 1;
the margin, Touvron et al. 2023, arXiv:2307.09288, eq. 2; centring, Eisenstein et al. 2023,
arXiv:2312.09244, eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from align.trainers.guarded import GuardedTrainer, with_row_index

# TRL's names of what it logs -> the names under which every trainer here logs them.
LOGGED = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}


class RewardModelTrainer(GuardedTrainer, RewardTrainer):
    """`trl.RewardTrainer` on tokenised pairs, as a run wants it.

    Args:
        model: a sequence classifier with one output.
        args: a `trl.RewardConfig`.
        train_dataset: columns `chosen_ids` and `rejected_ids`, each the whole row, and optionally
            `margin`; see `GuardedTrainer` for the others.
        peft_config: of an adapter; its `modules_to_save` must hold the head.
    """

    kind = "reward"
    read_columns: ClassVar[tuple[str, ...]] = ("chosen_ids", "rejected_ids", "margin")

    def __init__(self, model: Any, *, args: RewardConfig, processing_class: Any, **given: Any):
        super().__init__(
            model,
            args=args,
            processing_class=processing_class,
            data_collator=WholePairs(pad_token_id=processing_class.pad_token_id),
            **given,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL, under the names of the preference trainers."""
        mode = "train" if self.model.training else "eval"
        for theirs, ours in LOGGED.items():
            if theirs in self._metrics[mode]:
                self._metrics[mode][ours] = self._metrics[mode].pop(theirs)
        super().log(logs, start_time)


@dataclass
class WholePairs(DataCollatorForPreference):
    """TRL's collator, with the numbers of the rows and what they are labelled with."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of both sides, [2B, T]: all chosen rows, then all rejected ones."""
        batch = super().torch_call(examples)
        if "preference" in examples[0]:
            labels = [float(example["preference"]) for example in examples]
            batch["preference"] = torch.tensor(labels)
        return with_row_index(batch, examples)
