"""The named trainers of the other libraries' pair losses; the rule is that of `named`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from align.objectives import (
    CPO,
    DPOP,
    EXO,
    LDDPO,
    NCA,
    ODPO,
    ORPO,
    REFUEL,
    AlphaPO,
    AnchoredDown,
    AnchoredZero,
    CalDPO,
    ChiPO,
    ChosenNLL,
    DiscoPOP,
    Hinge,
    SimPO,
    SLiC,
    Sum,
)
from align.trainers.config import PreferenceConfig
from align.trainers.named import NamedTrainer, field_of


@dataclass
class AlphaPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `alphapo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(AlphaPO, "beta")
    gamma: float = field_of(AlphaPO, "gamma")
    alpha: float = field_of(AlphaPO, "alpha")


class AlphaPOTrainer(NamedTrainer):
    """SimPO with a bent reward (Gupta et al. 2025, arXiv:2501.03884)."""

    objective_class, config_class = AlphaPO, AlphaPOConfig


@dataclass
class AnchoredDownConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `anchored_down`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(AnchoredDown, "beta")


class AnchoredDownTrainer(NamedTrainer):
    """Anchored PO, both sides down (D'Oosterlinck et al. 2024, arXiv:2408.06266)."""

    objective_class, config_class = AnchoredDown, AnchoredDownConfig


@dataclass
class AnchoredZeroConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `anchored_zero`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(AnchoredZero, "beta")


class AnchoredZeroTrainer(NamedTrainer):
    """Anchored PO, chosen up (D'Oosterlinck et al. 2024, arXiv:2408.06266)."""

    objective_class, config_class = AnchoredZero, AnchoredZeroConfig


@dataclass
class CalDPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `cal_dpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(CalDPO, "beta")


class CalDPOTrainer(NamedTrainer):
    """Calibrated DPO (Xiao et al. 2024, arXiv:2412.14516)."""

    objective_class, config_class = CalDPO, CalDPOConfig


@dataclass
class ChiPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `chipo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(ChiPO, "beta")
    clip: float = field_of(ChiPO, "clip")


class ChiPOTrainer(NamedTrainer):
    """Chi-squared PO (Huang et al. 2024, arXiv:2407.13399)."""

    objective_class, config_class = ChiPO, ChiPOConfig


@dataclass
class ChosenNLLConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `chosen_nll`."""

    length_normalised: bool = field_of(ChosenNLL, "length_normalised")


class ChosenNLLTrainer(NamedTrainer):
    """Likelihood of chosen alone; reads no reference."""

    objective_class, config_class = ChosenNLL, ChosenNLLConfig


@dataclass
class CPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `cpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(CPO, "beta")
    alpha: float = field_of(CPO, "alpha")


class CPOTrainer(NamedTrainer):
    """Contrastive PO, without reference (Xu et al. 2024, arXiv:2401.08417)."""

    objective_class, config_class = CPO, CPOConfig


@dataclass
class DiscoPOPConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `discopop`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(DiscoPOP, "beta")
    tau: float = field_of(DiscoPOP, "tau")


class DiscoPOPTrainer(NamedTrainer):
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414)."""

    objective_class, config_class = DiscoPOP, DiscoPOPConfig


@dataclass
class DPOPConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `dpop`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(DPOP, "beta")
    penalty: float = field_of(DPOP, "penalty")


class DPOPTrainer(NamedTrainer):
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228)."""

    objective_class, config_class = DPOP, DPOPConfig


@dataclass
class EXOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `exo`."""

    own_fields = frozenset({"beta", "label_smoothing"})
    beta: float = field_of(EXO, "beta")
    label_smoothing: float = field_of(EXO, "label_smoothing")


class EXOTrainer(NamedTrainer):
    """Efficient exact optimisation (Ji et al. 2024, arXiv:2402.00856)."""

    objective_class, config_class = EXO, EXOConfig


@dataclass
class HingeConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `hinge`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(Hinge, "beta")


class HingeTrainer(NamedTrainer):
    """SLiC's hinge on DPO's log-ratios (Zhao et al. 2023, arXiv:2305.10425)."""

    objective_class, config_class = Hinge, HingeConfig


@dataclass
class LDDPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `ld_dpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(LDDPO, "beta")
    alpha: float = field_of(LDDPO, "alpha")


class LDDPOTrainer(NamedTrainer):
    """Length-desensitised DPO (Liu et al. 2024, arXiv:2409.06411)."""

    objective_class, config_class = LDDPO, LDDPOConfig


@dataclass
class NCAConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `nca`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(NCA, "beta")


class NCATrainer(NamedTrainer):
    """Noise contrastive alignment of pairs (Chen et al. 2024, arXiv:2402.05369)."""

    objective_class, config_class = NCA, NCAConfig


@dataclass
class ODPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `odpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(ODPO, "beta")
    alpha: float = field_of(ODPO, "alpha")
    scale: Literal["log", "identity"] = field_of(ODPO, "scale")


class ODPOTrainer(NamedTrainer):
    """DPO with an offset by score (Amini et al. 2024, arXiv:2402.10571)."""

    objective_class, config_class = ODPO, ODPOConfig


@dataclass
class ORPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `orpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(ORPO, "beta")


class ORPOTrainer(NamedTrainer):
    """Odds ratio PO, without reference (Hong et al. 2024, arXiv:2403.07691)."""

    objective_class, config_class = ORPO, ORPOConfig


@dataclass
class REFUELConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `refuel`."""

    eta: float = field_of(REFUEL, "eta")


class REFUELTrainer(NamedTrainer):
    """REBEL on returns of dialogues (Gao et al. 2024, arXiv:2410.04612)."""

    objective_class, config_class = REFUEL, REFUELConfig


@dataclass
class SimPOConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `simpo`."""

    own_fields = frozenset({"beta"})
    beta: float = field_of(SimPO, "beta")
    gamma: float = field_of(SimPO, "gamma")


class SimPOTrainer(NamedTrainer):
    """SimPO, without reference (Meng et al. 2024, arXiv:2405.14734)."""

    objective_class, config_class = SimPO, SimPOConfig


@dataclass
class SLiCConfig(PreferenceConfig):
    """`PreferenceConfig` with the fields of `slic`."""

    margin: float = field_of(SLiC, "margin")
    nll_weight: float = field_of(SLiC, "nll_weight")


class SLiCTrainer(NamedTrainer):
    """SLiC-HF, without reference (Zhao et al. 2023, arXiv:2305.10425)."""

    objective_class, config_class = SLiC, SLiCConfig


@dataclass
class SumConfig(PreferenceConfig):
    """`PreferenceConfig` with the field of `sum`, which has no default."""

    of: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": Sum.model_fields["of"].description},
    )


class SumTrainer(NamedTrainer):
    """A weighted sum of objectives: `SumConfig(of=[{"weight": 0.8, "objective": {...}}, ...])`."""

    objective_class, config_class = Sum, SumConfig
