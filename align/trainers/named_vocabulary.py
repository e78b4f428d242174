"""The named trainers of the losses that can ask for whole vocabularies; the rule is `named`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.objectives import TDPO, WPO
from align.trainers.config import PreferenceConfig
from align.trainers.named import NamedTrainer, field_of


@dataclass
class TDPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `tdpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(TDPO, "beta")
    form: Literal["tdpo1", "tdpo2"] = field_of(TDPO, "form")
    alpha: float = field_of(TDPO, "alpha")


class TDPOTrainer(NamedTrainer):
    """DPO with every token's KL in the margin (Zeng et al. 2024, arXiv:2404.11999)."""

    objective_class, config_class = TDPO, TDPOConfig


@dataclass
class WPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `wpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(WPO, "beta")
    alignment: Literal["none", "sampled"] = field_of(WPO, "alignment")


class WPOTrainer(NamedTrainer):
    """DPO weighted by the policy's own probability (Zhou et al. 2024, arXiv:2406.11827)."""

    objective_class, config_class = WPO, WPOConfig
