"""TRL's loss switches as objective nodes: one table, read once when a trainer is built.

The formulas are those of `align.objectives`; what is not registered there is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.errors import RecipeError
from align.nearest import did_you_mean

logger = logging.getLogger(__name__)

BETA = {"beta": "beta"}
SMOOTHED = BETA | {"label_smoothing": "label_smoothing"}
REVERSE_KL = "reverse_kl"


@dataclass(frozen=True)
class Loss:
    """One entry of TRL's `loss_type`.

    Attributes:
        objective: its name here.
        read: the objective's fields and the setting of `trl.DPOConfig` that each is read from.
        fixed: the objective's fields that make it TRL's variant.
        scale: what TRL's loss is of the objective's.
    """

    objective: str
    read: Mapping[str, str] = field(default_factory=lambda: BETA)
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scale: float = 1.0


LOSSES: Mapping[str, Loss] = {
    "sigmoid": Loss("dpo"),
    "sigmoid_norm": Loss("dpo", fixed={"length_normalised": True}),
    "hinge": Loss("hinge"),
    "ipo": Loss("ipo", {"tau": "beta"}, {"length_normalised": True}),
    "exo_pair": Loss("exo", SMOOTHED),
    "nca_pair": Loss("nca"),
    "robust": Loss("rdpo", BETA | {"flip_probability": "label_smoothing"}),
    "bco_pair": Loss("bco", fixed={"shift": "zero"}),
    "sppo_hard": Loss("sppo", scale=2.0),
    "aot": Loss("aot", SMOOTHED),
    "aot_unpaired": Loss("aot_unpaired", SMOOTHED),
    "apo_zero": Loss("anchored_zero"),
    "apo_down": Loss("anchored_down"),
    "discopop": Loss("discopop", BETA | {"tau": "discopop_tau"}),
    "sft": Loss("chosen_nll", {}),
}
# Settings that only some entries read, with their defaults; elsewhere TRL has no use for them.
READ_BY_SOME = {"label_smoothing": 0.0, "discopop_tau": 0.05}


def objective_node(args: Any) -> dict[str, Any]:
    """The objective that `loss_type` and TRL's other loss switches name.

    Args:
        args: a `trl.DPOConfig`.

    Raises:
        RecipeError: an unknown `loss_type`, or a switch that these losses do not have here.
    """
    names: Sequence[str] = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
    for name in names:
        if name not in LOSSES:
            raise RecipeError(
                f"loss_type: {name!r} is no loss of TRL 1.16{did_you_mean(name, list(LOSSES))} "
                f"There are {', '.join(LOSSES)}; every objective of this library can be given as "
                "`PreferenceTrainer(objective={'name': ...})`."
            )
    _check_switches(args, names)
    if args.use_weighting and _is_plain_dpo(args, names):
        return {"name": "wpo", "beta": args.beta, "alignment": "sampled"}
    weights = args.loss_weights or [1.0] * len(names)
    if len(weights) != len(names):
        raise RecipeError(
            f"loss_weights has {len(weights)} numbers for {len(names)} losses in loss_type; give "
            "one for each."
        )
    pair_weight = {"pair_weight": "wpo"} if args.use_weighting else {}
    parts = [
        {
            "weight": float(weight) * LOSSES[name].scale,
            **pair_weight,
            "objective": _node(name, args),
        }
        for name, weight in zip(names, weights, strict=True)
    ]
    if len(parts) == 1 and parts[0]["weight"] == 1.0 and not pair_weight:
        return parts[0]["objective"]
    return {"name": "sum", "of": parts}


def wins_are_sure(args: Any) -> bool:
    """Whether a loss asks for win rates that TRL sets to 1 and 0 itself."""
    return "sppo_hard" in args.loss_type


def _node(name: str, args: Any) -> dict[str, Any]:
    loss = LOSSES[name]
    node: dict[str, Any] = {"name": loss.objective, **loss.fixed}
    node |= {own: getattr(args, theirs) for own, theirs in loss.read.items()}
    if args.ld_alpha is not None:
        return {"name": "ld_dpo", "beta": args.beta, "alpha": args.ld_alpha}
    if args.f_divergence_type != REVERSE_KL:
        node["f_divergence"] = args.f_divergence_type
        if args.f_divergence_type == "alpha_divergence":
            node["alpha"] = args.f_alpha_divergence_coef
    return node


def _is_plain_dpo(args: Any, names: Sequence[str]) -> bool:
    switched = args.ld_alpha is not None or args.f_divergence_type != REVERSE_KL
    return list(names) == ["sigmoid"] and args.loss_weights in (None, [1.0]) and not switched


def _check_switches(args: Any, names: Sequence[str]) -> None:
    if args.use_weighting and (sorts := [name for name in names if name.startswith("aot")]):
        raise RecipeError(
            f"use_weighting: loss_type {', '.join(sorts)} compares sorted margins, of which none "
            "is one pair's, so no pair's weight belongs to it; TRL refuses it, too. Leave one out."
        )
    if args.ld_alpha is not None and list(names) != ["sigmoid"]:
        raise RecipeError(
            f"ld_alpha is an objective of its own here, ld_dpo, which stands for loss_type "
            f"'sigmoid' alone; loss_type is {list(names)}. Leave ld_alpha out."
        )
    if args.f_divergence_type != REVERSE_KL:
        others = [name for name in names if LOSSES[name].objective != "dpo"]
        if others or args.ld_alpha is not None:
            raise RecipeError(
                f"f_divergence_type = {args.f_divergence_type!r} is known for loss_type 'sigmoid' "
                f"and 'sigmoid_norm', not for {', '.join(others) or 'ld_alpha'}. Leave one of the "
                "two out."
            )
    read = {theirs for name in names for theirs in LOSSES[name].read.values()}
    for switch, default in READ_BY_SOME.items():
        if getattr(args, switch) != default and switch not in read:
            logger.warning(
                "%s = %s is read by none of %s, in TRL 1.16 as here; it has no influence.%s",
                switch,
                getattr(args, switch),
                ", ".join(names),
                " DPO with smoothed labels is CDPOTrainer." if switch == "label_smoothing" else "",
            )
    if "sft" in names:
        logger.warning(
            "loss_type sft averages each pair's own tokens here; TRL averages over all tokens of a "
            "device's batch, so long answers count more there."
        )
    if sorts := [name for name in names if name.startswith("aot")]:
        logger.warning(
            "loss_type %s sorts all pairs of the optimizer step here, on all ranks; TRL sorts "
            "those of each forward pass.",
            ", ".join(sorts),
        )
