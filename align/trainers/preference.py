# pyright: basic
"""One trainer for every pairwise objective, where `trl.DPOTrainer` stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.errors import RecipeError
from align.objectives import Objective, objective_from
from align.trainers.config import PreferenceConfig
from align.trainers.objective_trainer import ObjectiveTrainer
from align.trainers.pair_rows import PairRows


class PreferenceTrainer(PairRows, ObjectiveTrainer):
    """`trl.DPOTrainer` for any objective: its constructor arguments, callbacks and checkpoints.

    Args:
        model: as in TRL; a path, a hub id, a model or a PEFT model.
        ref_model: short for `roles={"reference": ref_model}`.
        args: a `PreferenceConfig`, or a plain `trl.DPOConfig`, whose settings are taken over; loss
            switches that the trainer does not read are refused.
        train_dataset: TRL's preference format, or columns `prompt_ids, chosen_ids, rejected_ids`;
            further columns (`chosen_score`, `rejected_score`, `preference`, token weights) as the
            objective asks.
        eval_dataset: the same, or a mapping of them.
        objective: an `Objective` or its recipe node, such as `{"name": "dpo", "beta": 0.1}`.
        roles: where the frozen policies come from: "start" (the policy as it is now), a folder, a
            hub id (`id@revision`) or a model. `reference` is "start" unless given.

    Attributes:
        identities: who the scored roles are, by role.
        probe: what the start-up probe measured, or None when the reference is another policy.

    Raises:
        RecipeError: the objective, a role or a setting cannot be used as given.
        DataError: rows that cannot be trained on, or a column that the objective needs is missing.
        NumericalError: the start-up probe fails, or training meets a zero or non-finite number.
    """

    @classmethod
    def _objective_of(
        cls, args: PreferenceConfig, objective: Objective | Mapping[str, Any] | None
    ) -> Objective:
        if objective is None:
            raise RecipeError(
                f"{cls.__name__} needs `objective`, for example {{'name': 'dpo', 'beta': 0.1}}; "
                "the named trainers (DPOTrainer, RPOTrainer, ...) take it from their config."
            )
        return objective_from(objective, Objective)
