# pyright: basic
"""Where `trl.KTOTrainer` stands: completions that are said to be desirable or not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

from datasets import Dataset
from trl.trainer.kto_config import KTOConfig as TRLConfig
from trl.trainer.kto_trainer import KTOTrainer as TRLTrainer
from trl.trainer.utils import get_config_model_id

from align.errors import RecipeError
from align.nearest import did_you_mean
from align.objectives import GroupObjective, objective_from
from align.trainers.config import PreferenceConfig
from align.trainers.group_kind import LABEL
from align.trainers.groups import GroupConfig, GroupTrainer

logger = logging.getLogger(__name__)

LOSS_TYPES = ("kto", "apo_zero_unpaired")
# What TRL recommends, from the paper (arXiv:2402.01306, eq. 8; as TRL 1.16 quotes it): the weights'
# ratio makes up for the labels' up to this factor.
MOST_BALANCE = 1.33


@dataclass
class KTOConfig(GroupConfig):
    """`trl.KTOConfig`: its fields, defaults and choices, and those of `GroupConfig`.

    Args:
        train_sampling_strategy: `kto` takes the completion of the row before each row, so its rows
            come in their order.
        beta: reward per nat of log-ratio.
        desirable_weight: weight of the losses of desirable completions.
        undesirable_weight: of the others.
        loss_type: "kto", or "apo_zero_unpaired", which has no KL term.

    Raises:
        RecipeError: an unknown `loss_type`, or a switch of TRL that has no use here.
    """

    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "Order of the rows; loss_type kto needs `sequential`.",
            "choices": ["random", "sequential", "group_by_length", "group_by_prompt"],
        },
    )
    beta: float = field(default=0.1, metadata={"help": "Reward per nat of log-ratio."})
    desirable_weight: float = field(
        default=1.0, metadata={"help": "Weight of the losses of desirable completions."}
    )
    undesirable_weight: float = field(
        default=1.0, metadata={"help": "Weight of the losses of undesirable completions."}
    )
    loss_type: str = field(  # type: ignore[assignment] - one, where DPO mixes several
        default="kto", metadata={"help": "The loss.", "choices": list(LOSS_TYPES)}
    )

    own_fields = frozenset({"beta", "loss_type"})

    def __post_init__(self) -> None:
        one = self.loss_type
        super().__post_init__()
        # DPO's config makes a list of it.
        self.loss_type = one

    def check_settings(self) -> None:
        """As in `PreferenceConfig`, and the loss.

        Raises:
            RecipeError: naming the setting.
        """
        super().check_settings()
        if self.loss_type not in LOSS_TYPES:
            raise RecipeError(
                f"loss_type: {self.loss_type!r} is no loss of trl.KTOTrainer 1.16"
                f"{did_you_mean(str(self.loss_type), list(LOSS_TYPES))} There are "
                f"{', '.join(LOSS_TYPES)}; other losses over single completions are "
                "`GroupTrainer(objective={'name': ...})`."
            )


class KTOTrainer(GroupTrainer):
    """`trl.KTOTrainer`: its constructor arguments, its columns, its metrics.

    Args:
        args: a `KTOConfig`, or a plain `trl.KTOConfig`, whose settings are taken over.
        train_dataset: TRL's unpaired format (`prompt`, `completion`, `label`), its preference
            format, which is unpaired as TRL does it, or token ids. Each row is one completion.
    """

    _tag_names = ["trl", "kto", "align", "preference-optimization"]  # noqa: RUF012 - TRL's name and type
    _name = TRLTrainer._name
    _paper = TRLTrainer._paper
    config_class = KTOConfig
    trl_config: ClassVar[type[Any]] = TRLConfig

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        # args is the third positional parameter behind the model and its reference, as in TRL.
        if len(args) < 2 and kwargs.get("args") is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            # TRL's name for the folder of a run without settings.
            kwargs["args"] = KTOConfig(f"{(name or 'model').split('/')[-1]}-KTO")
        super().__init__(model, *args, **kwargs)

    @property
    def gathers_prompts(self) -> bool:
        """Each completion is a row, as in TRL."""
        return False

    @classmethod
    def _objective_of(
        cls, args: PreferenceConfig, objective: GroupObjective | Mapping[str, Any] | None
    ) -> GroupObjective:
        if objective is not None:
            raise RecipeError(
                "KTOTrainer takes its loss from its config (loss_type, beta, desirable_weight, "
                "undesirable_weight); for another one use GroupTrainer(objective=...)."
            )
        if not isinstance(args, KTOConfig):
            raise RecipeError(
                f"KTOTrainer needs a KTOConfig, not a {type(args).__name__}; its fields are those "
                "of trl.KTOConfig."
            )
        weighted = {
            "beta": args.beta,
            "desirable_weight": args.desirable_weight,
            "undesirable_weight": args.undesirable_weight,
        }
        name = "anchored_zero_unpaired" if args.loss_type == "apo_zero_unpaired" else "kto"
        return objective_from({"name": name, **weighted}, GroupObjective)

    def _completed(self, dataset: Dataset, args: Any) -> Dataset:
        # The training rows are the first to come.
        if self._row_count == 0 and LABEL in dataset.column_names:
            told = unbalanced(list(chain.from_iterable(dataset[LABEL])), args)
            if told is not None:
                logger.warning(told)
        return super()._completed(dataset, args)


def unbalanced(labels: list[bool], args: KTOConfig) -> str | None:
    """A sentence where the weights do not make up for unequal numbers of labels, as in TRL."""
    desirable = max(sum(labels), 1)
    undesirable = max(len(labels) - desirable, 1)
    if desirable == undesirable:
        return None
    least = round(undesirable * args.undesirable_weight / desirable, 2)
    most = round(undesirable * args.undesirable_weight / desirable * MOST_BALANCE, 2)
    least_other = round(desirable * args.desirable_weight / undesirable / MOST_BALANCE, 2)
    most_other = round(desirable * args.desirable_weight / undesirable, 2)
    if least <= args.desirable_weight <= most:
        return None
    if least_other <= args.undesirable_weight <= most_other:
        return None
    return (
        f"{desirable} completions are desirable and {undesirable} are not, and the weights do not "
        f"make up for it: set either desirable_weight within [{least}, {most}] or "
        f"undesirable_weight within [{least_other}, {most_other}], not both."
    )
