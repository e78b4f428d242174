"""The formulas, one per file; the unions list the built-in ones.

`AnyObjective` are losses over preference pairs, `AnyGroupObjective` those over completions in
groups (`align.objectives.groups`). A name is in one of the two.

Adding one: its file, its import and its name in the union, its line in `align.built_in`, its test
file, its tiny recipe, its row in docs/losses.md, its named trainer. A formula of one's own needs
none of these: a recipe names it as `file.py:Class`, or by the name that an installed package gives
it (`align.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, cast, get_args, overload

from pydantic import BaseModel, Field, ValidationError

from align import registry
from align.errors import RecipeError
from align.objectives.alphapo import AlphaPO
from align.objectives.anchored_down import AnchoredDown
from align.objectives.anchored_zero import AnchoredZero
from align.objectives.aot import AOT
from align.objectives.aot_unpaired import AOTUnpaired
from align.objectives.apo import APO
from align.objectives.base import Formula, Objective
from align.objectives.bco import BCO
from align.objectives.beta_dpo import BetaDPO
from align.objectives.cal_dpo import CalDPO
from align.objectives.cdpo import CDPO
from align.objectives.chipo import ChiPO
from align.objectives.chosen_nll import ChosenNLL
from align.objectives.copg import CoPG
from align.objectives.coupled import Coupled, CoupledGroups
from align.objectives.cpo import CPO
from align.objectives.discopop import DiscoPOP
from align.objectives.dpo import DPO
from align.objectives.dpop import DPOP
from align.objectives.exo import EXO
from align.objectives.groups.anchored_zero_unpaired import AnchoredZeroUnpaired
from align.objectives.groups.base import GroupObjective
from align.objectives.groups.bco_unpaired import BCOUnpaired
from align.objectives.groups.cispo import CISPO
from align.objectives.groups.copg_group import CoPGGroup
from align.objectives.groups.dapo import DAPO
from align.objectives.groups.direct_advantage import DirectAdvantage
from align.objectives.groups.gepo import GEPO
from align.objectives.groups.gmpo import GMPO
from align.objectives.groups.group_relative import GroupRelative
from align.objectives.groups.gspo import GSPO
from align.objectives.groups.kto import KTO
from align.objectives.groups.lipo import LiPO
from align.objectives.groups.luspo import LUSPO
from align.objectives.groups.nft import NFT
from align.objectives.groups.plackett_luce import PlackettLuce
from align.objectives.groups.reinforce_pp import ReinforcePP
from align.objectives.groups.remax import ReMax
from align.objectives.groups.rloo import RLOO
from align.objectives.groups.rto import RTO
from align.objectives.groups.sapo import SAPO
from align.objectives.groups.trpa import TRPA
from align.objectives.groups.vespo import VESPO
from align.objectives.hinge import Hinge
from align.objectives.inpo import INPO
from align.objectives.ipo import IPO
from align.objectives.ld_dpo import LDDPO
from align.objectives.nash_mp import NashMP
from align.objectives.nca import NCA
from align.objectives.odpo import ODPO
from align.objectives.opa_dpo import OPADPO
from align.objectives.orpo import ORPO
from align.objectives.p3o import P3O
from align.objectives.rdpo import RDPO
from align.objectives.rebel import REBEL
from align.objectives.refuel import REFUEL
from align.objectives.rpo import RPO
from align.objectives.simpo import SimPO
from align.objectives.slic import SLiC
from align.objectives.spo import SPO
from align.objectives.sppo import SPPO
from align.objectives.sum import Part, Sum
from align.objectives.tdpo import TDPO
from align.objectives.tgdpo import TGDPO
from align.objectives.wpo import WPO

AnyObjective = Annotated[
    AlphaPO
    | AnchoredDown
    | AnchoredZero
    | AOT
    | AOTUnpaired
    | APO
    | BCO
    | BetaDPO
    | CalDPO
    | CDPO
    | ChiPO
    | ChosenNLL
    | CoPG
    | CPO
    | DiscoPOP
    | DPO
    | DPOP
    | EXO
    | Hinge
    | INPO
    | IPO
    | LDDPO
    | NashMP
    | NCA
    | ODPO
    | OPADPO
    | ORPO
    | P3O
    | RDPO
    | REBEL
    | REFUEL
    | RPO
    | SimPO
    | SLiC
    | SPO
    | SPPO
    | Sum
    | TDPO
    | TGDPO
    | WPO,
    Field(discriminator="name"),
]

AnyGroupObjective = Annotated[
    AnchoredZeroUnpaired
    | BCOUnpaired
    | CISPO
    | CoPGGroup
    | DAPO
    | DirectAdvantage
    | GEPO
    | GMPO
    | GroupRelative
    | GSPO
    | KTO
    | LiPO
    | LUSPO
    | NFT
    | PlackettLuce
    | ReinforcePP
    | ReMax
    | RLOO
    | RTO
    | SAPO
    | TRPA
    | VESPO,
    Field(discriminator="name"),
]

_BY_NAME: dict[str, type[Objective | GroupObjective]] = {
    member.model_fields["name"].default: member
    for union in (AnyObjective, AnyGroupObjective)
    for member in get_args(get_args(union)[0])
}
_OVER: Mapping[type[Formula], str] = {
    Objective: "preference pairs",
    GroupObjective: "completions in groups",
}

F = TypeVar("F", bound=Formula)


@overload
def objective_from(node: F) -> F: ...
@overload
def objective_from(node: Mapping[str, Any]) -> Objective | GroupObjective: ...
@overload
def objective_from(node: Mapping[str, Any] | Formula, over: type[F]) -> F: ...
def objective_from(
    node: Mapping[str, Any] | Formula, over: type[Formula] = Formula
) -> Formula | Objective | GroupObjective:
    """The objective that a recipe's `objective` section describes; an objective is given back.

    Args:
        node: the section, or an objective.
        over: `Objective` where only a loss over pairs will do, `GroupObjective` where only one over
            groups of completions will.

    Raises:
        RecipeError: an unknown name or field (with the nearest right one) or a bad value; all
            faults at once, each by its key. Or the other kind of loss.
    """
    if not isinstance(node, (Formula, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance] - YAML's word
        raise RecipeError(
            f"`objective` must be a mapping such as {{name: dpo, beta: 0.1}}, not {node!r}."
        )
    found = node if isinstance(node, Formula) else _built(node)
    if not isinstance(found, over):
        kind = next((said for of, said in _OVER.items() if isinstance(found, of)), "neither")
        raise RecipeError(
            f"`objective.name` is {found.name!r}, a loss over {kind}, but here it must be one over "
            f"{_OVER.get(over, over.__name__)}: use the trainer and the data of such losses, or "
            "name another."
        )
    return found


def _built(node: Mapping[str, Any]) -> Objective | GroupObjective:
    name = node.get("name")
    if isinstance(name, str) and name in _BY_NAME:
        found = _BY_NAME[name]
    elif isinstance(name, str) and registry.knows("objective", name):
        # Of an installed package, or of a file that the recipe names.
        found = cast("type[Objective | GroupObjective]", registry.node("objective", name))
    else:
        said = "is missing" if "name" not in node else f"is {name!r}, which is no objective"
        raise RecipeError(
            f"`objective.name` {said}{_nearest(str(name), _BY_NAME)}; there are "
            f"{', '.join(sorted(_BY_NAME))}."
        )
    try:
        return found.model_validate(dict(node))
    except ValidationError as error:
        faults = [_sentence(fault, fault["loc"], found, node) for fault in error.errors()]
        raise RecipeError(" ".join(faults)) from None


def _sentence(
    fault: Mapping[str, Any], loc: Sequence[int | str], found: type[BaseModel], node: Any
) -> str:
    """One fault that pydantic found in a node of a class, as a sentence that names its key."""
    outer = "objective"
    while len(loc) > 3 and loc[0] == "of" and loc[2] == "objective":
        node = node["of"][loc[1]]["objective"]
        found = registry.node("objective", node["name"])
        outer, loc = f"{outer}.of.{loc[1]}.objective", loc[3:]
    name, message = found.model_fields["name"].default, fault["msg"].removeprefix("Value error, ")
    if not loc:  # a rule between fields
        return f"`{outer}` ({name}): {message}."
    fields = found.model_fields if len(loc) == 1 else Part.model_fields
    last, key = str(loc[-1]), ".".join([outer, *(str(part) for part in loc)])
    if last not in fields:
        of = f"`{name}`" if len(loc) == 1 else "a term of a sum"
        others = ", ".join(field for field in fields if field != "name")
        return f"`{key}` is no field of {of}{_nearest(last, fields)}; it has {others}."
    if last == "objective":
        return f"`{key}`: {message}."
    return f"`{key}` is {fault['input']!r}: {message}. ({fields[last].description})"


def _nearest(word: str, right: Mapping[str, Any]) -> str:
    matches = get_close_matches(word.lower(), list(right), n=1)
    return f" (did you mean `{matches[0]}`?)" if matches else ""


__all__ = [
    "AOT",
    "APO",
    "BCO",
    "CDPO",
    "CISPO",
    "CPO",
    "DAPO",
    "DPO",
    "DPOP",
    "EXO",
    "GEPO",
    "GMPO",
    "GSPO",
    "INPO",
    "IPO",
    "KTO",
    "LDDPO",
    "LUSPO",
    "NCA",
    "NFT",
    "ODPO",
    "OPADPO",
    "ORPO",
    "P3O",
    "RDPO",
    "REBEL",
    "REFUEL",
    "RLOO",
    "RPO",
    "RTO",
    "SAPO",
    "SPO",
    "SPPO",
    "TDPO",
    "TGDPO",
    "TRPA",
    "VESPO",
    "WPO",
    "AOTUnpaired",
    "AlphaPO",
    "AnchoredDown",
    "AnchoredZero",
    "AnchoredZeroUnpaired",
    "AnyGroupObjective",
    "AnyObjective",
    "BCOUnpaired",
    "BetaDPO",
    "CalDPO",
    "ChiPO",
    "ChosenNLL",
    "CoPG",
    "CoPGGroup",
    "Coupled",
    "CoupledGroups",
    "DirectAdvantage",
    "DiscoPOP",
    "GroupObjective",
    "GroupRelative",
    "Hinge",
    "LiPO",
    "NashMP",
    "Objective",
    "PlackettLuce",
    "ReMax",
    "ReinforcePP",
    "SLiC",
    "SimPO",
    "Sum",
    "objective_from",
]
