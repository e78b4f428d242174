"""The named trainers: each fixes the objective's class; its config has the objective's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from align.errors import RecipeError
from align.objectives import DPO, RDPO, RPO, Objective
from align.trainers.config import PreferenceConfig
from align.trainers.preference import PreferenceTrainer


def _field_of(objective: type[Objective], name: str) -> Any:
    """A dataclass field with the default and description that the objective's field has."""
    info = objective.model_fields[name]
    return field(
        default=info.default, metadata={"help": (info.description or "").replace("%", "%%")}
    )


class NamedTrainer(PreferenceTrainer):
    """A `PreferenceTrainer` whose objective comes from its config."""

    objective_class: ClassVar[type[Objective]]
    config_class: ClassVar[type[PreferenceConfig]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # args is the third positional parameter, as in TRL.
        if len(args) < 3 and kwargs.get("args") is None:
            kwargs["args"] = self.config_class()
        super().__init__(*args, **kwargs)

    @classmethod
    def _objective_of(
        cls, args: PreferenceConfig, objective: Objective | Mapping[str, Any] | None
    ) -> Objective:
        if objective is not None:
            raise RecipeError(
                f"{cls.__name__} takes its objective from {cls.config_class.__name__}; for another "
                "one use PreferenceTrainer(objective=...)."
            )
        if not isinstance(args, cls.config_class):
            raise RecipeError(
                f"{cls.__name__} needs a {cls.config_class.__name__}, not a "
                f"{type(args).__name__}: the objective's fields are read from it."
            )
        names = [name for name in cls.objective_class.model_fields if name != "name"]
        return cls.objective_class(**{name: getattr(args, name) for name in names})


@dataclass
class DPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `dpo`."""

    own_fields = frozenset({"beta"})
    beta: float = _field_of(DPO, "beta")


class DPOTrainer(NamedTrainer):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    objective_class, config_class = DPO, DPOConfig


@dataclass
class RDPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `rdpo`."""

    own_fields = frozenset({"beta"})
    beta: float = _field_of(RDPO, "beta")
    flip_probability: float = _field_of(RDPO, "flip_probability")


class RDPOTrainer(NamedTrainer):
    """Robust DPO: labels flipped at a known rate (Chowdhury et al. 2024, arXiv:2403.00409)."""

    objective_class, config_class = RDPO, RDPOConfig


@dataclass
class RPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `rpo`."""

    own_fields = frozenset({"beta"})
    beta: float = _field_of(RPO, "beta")
    eta: float = _field_of(RPO, "eta")
    form: Literal["cumulative", "average"] = _field_of(RPO, "form")


class RPOTrainer(NamedTrainer):
    """Regularized PO: DPO plus likelihood (Liu et al. 2024, arXiv:2405.16436)."""

    objective_class, config_class = RPO, RPOConfig
