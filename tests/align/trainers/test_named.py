"""A named trainer's config holds exactly its objective's fields, and hands them all over."""

from dataclasses import fields

import pytest
from pydantic import ValidationError

import align.trainers
from align.errors import RecipeError
from align.objectives import _BY_NAME, Objective
from align.trainers import PreferenceConfig
from align.trainers.named import NamedTrainer

# Objectives of the union that deliberately have no trainer of their own; at present none.
WITHOUT: set[str] = set()
CHANGED = {  # every field, none at its default
    "DPO": {
        "beta": 0.4,
        "f_divergence": "alpha_divergence",
        "alpha": 0.3,
        "length_normalised": True,
    },
    "RPO": {"beta": 0.4, "eta": 0.2, "form": "average"},
    "RDPO": {"beta": 0.4, "flip_probability": 0.3},
    "APO": {"beta": 0.4, "momentum": 0.5, "inner": "sppo"},
    "INPO": {"eta": 0.4, "tau": 0.2},
    "NashMP": {"beta": 0.4, "eta": 1.5},
    "TGDPO": {"beta": 0.4, "alpha": 2.0},
    "SPO": {"eta": 4.0, "tau": 0.2},
    "P3O": {"kl_beta": 0.2, "clip": 0.4, "form": "separate"},
    "CoPG": {"beta": 0.4},
    "CDPO": {"beta": 0.4, "label_smoothing": 0.2},
    "IPO": {"tau": 0.4, "length_normalised": True},
    "SPPO": {"beta": 0.4},
    "REBEL": {"eta": 0.4},
    "OPADPO": {
        "beta": 0.4,
        "image_weight": 0.5,
        "anchor": "code",
        "anchor_weight": 0.5,
        "anchor_margin": 0.3,
        "reduction": "position",
        "positions": 12,
    },
    "AOT": {"beta": 0.4, "label_smoothing": 0.2},
    "AOTUnpaired": {"beta": 0.4, "label_smoothing": 0.2},
    "BCO": {"beta": 0.4, "shift": "zero"},
    "BetaDPO": {"beta": 0.4, "alpha": 0.3, "keep": 0.9, "momentum": 0.5},
    "AlphaPO": {"beta": 0.4, "gamma": 0.3, "alpha": 0.7},
    "AnchoredDown": {"beta": 0.4},
    "AnchoredZero": {"beta": 0.4},
    "CalDPO": {"beta": 0.4},
    "ChiPO": {"beta": 0.4, "clip": 3.0},
    "ChosenNLL": {"length_normalised": False},
    "CPO": {"beta": 0.4, "alpha": 0.3},
    "DiscoPOP": {"beta": 0.4, "tau": 0.2},
    "DPOP": {"beta": 0.4, "penalty": 5.0},
    "EXO": {"beta": 0.4, "label_smoothing": 0.2},
    "Hinge": {"beta": 0.4},
    "LDDPO": {"beta": 0.4, "alpha": 0.3},
    "NCA": {"beta": 0.4},
    "ODPO": {"beta": 0.4, "alpha": 0.3, "scale": "identity"},
    "ORPO": {"beta": 0.4},
    "REFUEL": {"eta": 0.4},
    "SimPO": {"beta": 0.4, "gamma": 0.3},
    "SLiC": {"margin": 0.4, "nll_weight": 0.3},
    "TDPO": {"beta": 0.4, "form": "tdpo2", "alpha": 0.3},
    "WPO": {"beta": 0.4, "alignment": "sampled"},
    "Sum": {
        "of": [
            {
                "weight": 0.8,
                "pair_weight": "wpo",
                "objective": {"name": "hinge", "beta": 0.4},
            },
            {
                "weight": 0.2,
                "pair_weight": "one",
                "objective": {"name": "chosen_nll", "length_normalised": False},
            },
        ]
    },
}
# At its default, because another field is read by that value alone.
AT_DEFAULT = {("TDPO", "form")}
NAMES = list(CHANGED)
every_name = pytest.mark.parametrize("name", NAMES)


def pair_of(name: str) -> tuple[type[NamedTrainer], type[PreferenceConfig]]:
    return getattr(align.trainers, f"{name}Trainer"), getattr(align.trainers, f"{name}Config")


@pytest.fixture
def built(tmp_path):
    def build(name, **changes):
        trainer, config = pair_of(name)
        args = config(output_dir=str(tmp_path), report_to="none", use_cpu=True, **changes)
        return trainer._objective_of(args, None)

    return build


def test_every_objective_has_a_trainer_or_is_listed_without() -> None:
    over_pairs = (one for one in _BY_NAME.values() if issubclass(one, Objective))
    objectives = {objective.__name__ for objective in over_pairs}
    assert {*NAMES, *WITHOUT} == objectives
    assert not {*NAMES} & WITHOUT
    general = ("Preference", "Group", "KTO", "Reward")
    wanted = {f"{name}{kind}" for name in general for kind in ("Trainer", "Config")}
    wanted |= {f"{name}{kind}" for name in NAMES for kind in ("Trainer", "Config")}
    assert set(align.trainers.__all__) == wanted


@every_name
def test_trainer_config_and_objective_belong_together(name) -> None:
    trainer, config = pair_of(name)
    assert trainer.config_class is config
    assert trainer.objective_class.__name__ == name
    own = {field.name for field in fields(config)} - {
        field.name for field in fields(PreferenceConfig)
    }
    # Two fields have the names of TRL's own, which other configs refuse.
    shared = {"beta", "label_smoothing"} & set(CHANGED[name])
    of_objective = set(trainer.objective_class.model_fields) - {"name"}
    assert own | shared == set(CHANGED[name]) == of_objective
    assert config.own_fields == shared
    told = {field.name: field.metadata.get("help") for field in fields(config)}
    assert all(told[key] for key in of_objective)


def test_a_sum_without_terms_says_what_is_missing(built) -> None:
    with pytest.raises(ValidationError, match=r"at least 1 term"):
        built("Sum")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Sum"])
def test_untouched_it_has_the_objectives_defaults(name, built) -> None:
    trainer, _ = pair_of(name)
    assert built(name) == trainer.objective_class()


@every_name
def test_every_field_reaches_the_objective(name, built) -> None:
    found = built(name, **CHANGED[name]).model_dump()
    assert found == {"name": found["name"], **CHANGED[name]}
    if name == "Sum":
        return  # it has no default
    default = pair_of(name)[0].objective_class().model_dump()
    unchanged = {key for key, value in CHANGED[name].items() if default[key] == value}
    assert {(name, key) for key in unchanged} == {one for one in AT_DEFAULT if one[0] == name}


def test_the_other_form_of_tdpo_reaches_it_too(built) -> None:
    assert built("TDPO", form="tdpo1").form == "tdpo1"


def test_a_rule_between_fields_holds(built) -> None:
    with pytest.raises(ValidationError, match=r"`tau` is 0\.2, but must be at most `eta`, 0\.1"):
        built("INPO", eta=0.1, tau=0.2)


def test_an_objective_beside_the_config_is_refused(tmp_path) -> None:
    trainer, config = pair_of("APO")
    with pytest.raises(RecipeError, match=r"APOTrainer takes its objective from APOConfig"):
        trainer._objective_of(config(output_dir=str(tmp_path), use_cpu=True), {"name": "dpo"})
