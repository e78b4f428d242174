"""A named trainer's config holds exactly its objective's fields, and hands them all over."""

from dataclasses import fields

import pytest
from pydantic import ValidationError

import align.trainers
from align.errors import RecipeError
from align.trainers import PreferenceConfig
from align.trainers.named import NamedTrainer

NAMES = ["DPO", "RPO", "RDPO", "APO", "INPO", "NashMP", "TGDPO", "SPO", "P3O", "CoPG"]
CHANGED = {  # every field, none at its default
    "DPO": {"beta": 0.4},
    "RPO": {"beta": 0.4, "eta": 0.2, "form": "average"},
    "RDPO": {"beta": 0.4, "flip_probability": 0.3},
    "APO": {"beta": 0.4, "momentum": 0.5, "inner": "sppo"},
    "INPO": {"eta": 0.4, "tau": 0.2},
    "NashMP": {"beta": 0.4, "eta": 1.5},
    "TGDPO": {"beta": 0.4, "alpha": 2.0},
    "SPO": {"eta": 4.0, "tau": 0.2},
    "P3O": {"kl_beta": 0.2, "clip": 0.4, "form": "separate"},
    "CoPG": {"beta": 0.4},
}
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


def test_all_ten_are_there() -> None:
    exported = {name for name in align.trainers.__all__ if name.endswith("Trainer")}
    assert exported == {f"{name}Trainer" for name in NAMES} | {"PreferenceTrainer"}


@every_name
def test_trainer_config_and_objective_belong_together(name) -> None:
    trainer, config = pair_of(name)
    assert trainer.config_class is config
    assert trainer.objective_class.__name__ == name
    own = {field.name for field in fields(config)} - {
        field.name for field in fields(PreferenceConfig)
    }
    assert own | ({"beta"} & set(CHANGED[name])) == set(CHANGED[name])


@every_name
def test_untouched_it_has_the_objectives_defaults(name, built) -> None:
    trainer, _ = pair_of(name)
    assert built(name) == trainer.objective_class()


@every_name
def test_every_field_reaches_the_objective(name, built) -> None:
    found = built(name, **CHANGED[name]).model_dump()
    assert found == {"name": found["name"], **CHANGED[name]}
    default = pair_of(name)[0].objective_class().model_dump()
    assert all(default[key] != value for key, value in CHANGED[name].items())


def test_a_rule_between_fields_holds(built) -> None:
    with pytest.raises(ValidationError, match=r"`tau` is 0\.2, but must be at most `eta`, 0\.1"):
        built("INPO", eta=0.1, tau=0.2)


def test_an_objective_beside_the_config_is_refused(tmp_path) -> None:
    trainer, config = pair_of("APO")
    with pytest.raises(RecipeError, match=r"APOTrainer takes its objective from APOConfig"):
        trainer._objective_of(config(output_dir=str(tmp_path), use_cpu=True), {"name": "dpo"})
