# pyright: basic
"""What a script for `trl.DPOTrainer` says in its config, as objective, roles and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from align.errors import RecipeError
from align.objectives import Objective, objective_from
from align.reference import START
from align.trainers.config import PreferenceConfig, changed_switches
from align.trainers.preference import PreferenceTrainer
from align.trainers.scoring import RoleSource
from align.trainers.trl_losses import objective_node, wins_are_sure

# What DPO's config has beside TRL's settings.
OWN_SWITCHES = ("f_divergence", "alpha", "length_normalised")


class LossSwitches(PreferenceTrainer):
    """The part of `DPOTrainer` that reads TRL's loss switches."""

    _tag_names = ["trl", "dpo", "align", "preference-optimization"]  # noqa: RUF012 - TRL's name and type

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        # args is the third positional parameter behind the model and its reference, as in TRL.
        if len(args) < 2 and kwargs.get("args") is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            # TRL's name for the folder of a run without settings.
            kwargs["args"] = self.config_class(f"{(name or 'model').split('/')[-1]}-DPO")
        super().__init__(model, *args, **kwargs)

    @classmethod
    def _objective_of(
        cls, args: PreferenceConfig, objective: Objective | Mapping[str, Any] | None
    ) -> Objective:
        own = super()._objective_of(args, objective)
        switched = changed_switches(args)
        if not switched:
            return own
        fields = type(own).model_fields
        both = [name for name in OWN_SWITCHES if getattr(own, name) != fields[name].default]
        if both:
            raise RecipeError(
                f"{both[0]} is DPO's own setting and {switched[0]} is TRL's choice of another "
                "loss; only one of the two can be meant. Take one out."
            )
        return objective_from(objective_node(args), Objective)

    def _role_sources(
        self, roles: Mapping[str, RoleSource] | None, ref_model: PreTrainedModel | None
    ) -> dict[str, RoleSource]:
        sources = dict(roles or {})
        if wins_are_sure(self.args) and "previous" not in sources:
            # SPPO's policy of the last round is TRL's reference.
            sources["previous"] = START if ref_model is None else ref_model
            if "reference" not in self.objective.needs:
                ref_model = None
        return super()._role_sources(sources, ref_model)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if not wins_are_sure(args):
            return prepared
        if isinstance(prepared, IterableDataset):
            return prepared.map(lambda row: {"chosen_score": 1.0, "rejected_score": 0.0})
        for name, score in (("chosen_score", 1.0), ("rejected_score", 0.0)):
            if name in prepared.column_names:
                prepared = prepared.remove_columns(name)
            prepared = prepared.add_column(name, [score] * len(prepared))  # type: ignore[call-arg]
        return prepared
