# pyright: basic
"""One trainer for every objective over groups of completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.errors import RecipeError
from align.objectives import GroupObjective, objective_from
from align.trainers.config import PreferenceConfig
from align.trainers.group_rows import GroupRows
from align.trainers.mismatched import MismatchedLeaves


@dataclass
class GroupConfig(PreferenceConfig):
    """The settings of `GroupTrainer`: those of `PreferenceConfig`.

    `per_device_train_batch_size` counts rows, which are groups: all completions of a prompt are in
    one step and in one forward pass. The loss is the mean over all completions of a step.
    """


class GroupTrainer(GroupRows, MismatchedLeaves):
    """Trains on prompts with any number of completions each, one included.

    Args:
        model: as in TRL; a path, a hub id, a model or a PEFT model.
        ref_model: short for `roles={"reference": ref_model}`.
        args: a `GroupConfig`.
        train_dataset: columns `prompt_ids` and `completions_ids` (a list of K lists of ids), with
            lists of one thing per completion as the objective asks: `scores`, `labels`,
            `advantages`, and per token `token_advantages`, `token_weights`. Rows of one completion
            each (`prompt_ids`, `completion_ids`, `score`, `label`, ...) are gathered by `group_id`
            or prompt.
        eval_dataset: the same, or a mapping of them.
        objective: a `GroupObjective`, or its recipe node.
        compute_metrics: is called once per evaluation, with the rewards [N] of all completions as
            `predictions`, in the data set's order, and their labels (0 or 1) as `label_ids`; the
            scores where rows have no labels, None where they have neither.
        roles: as for `PreferenceTrainer`.

    Raises:
        RecipeError: the objective, a role or a setting cannot be used as given.
        DataError: rows that cannot be trained on, or a column that the objective needs is missing.
        NumericalError: the start-up probe fails, or training meets a zero or non-finite number.
    """

    _name = "Preference optimization over groups"
    config_class = GroupConfig

    @property
    def gathers_prompts(self) -> bool:
        """Unless the objective looks at the row before each row."""
        return not self.reads_mismatched

    @classmethod
    def _objective_of(
        cls, args: PreferenceConfig, objective: GroupObjective | Mapping[str, Any] | None
    ) -> GroupObjective:
        del args
        if objective is None:
            raise RecipeError(
                f"{cls.__name__} needs `objective`, a loss over groups; KTOTrainer takes its own "
                "from its config."
            )
        return objective_from(objective, GroupObjective)
