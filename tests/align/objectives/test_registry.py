"""`objective_from`, and that every member of the union is complete: file, test, recipe, README."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import align.objectives
from align.errors import RecipeError
from align.objectives import CDPO, DPO, IPO, RPO, AnyObjective, Objective, objective_from

MEMBERS: list[type[Objective]] = list(get_args(get_args(AnyObjective)[0]))
NAMES = [member.model_fields["name"].default for member in MEMBERS]
every_name = pytest.mark.parametrize("name", NAMES)

TABLE = {  # the contract: needs, accepts
    "dpo": ({"reference"}, {"preference", "token_weight"}),
    "cdpo": ({"reference"}, set()),
    "ipo": ({"reference"}, {"preference"}),
    "rdpo": ({"reference"}, set()),
    "rpo": ({"reference"}, {"preference"}),
    "tgdpo": ({"reference", "guide"}, set()),
    "copg": ({"reference", "score"}, set()),
    "p3o": ({"previous", "reference", "score"}, set()),
    "inpo": ({"reference", "previous"}, {"preference"}),
    "nash_mp": ({"reference", "anchor"}, {"preference"}),
    "apo": ({"previous", "earlier"}, {"preference"}),
    "spo": ({"previous", "score"}, set()),
    "sppo": ({"previous", "score"}, set()),
    "rebel": ({"previous", "score"}, set()),
    "opa_dpo": ({"reference", "pair_kind"}, {"token_weight"}),
    "aot": ({"reference"}, set()),
    "aot_unpaired": ({"reference"}, set()),
    "bco": ({"reference"}, set()),
    "beta_dpo": ({"reference"}, set()),
    "alphapo": (set(), set()),
    "anchored_down": ({"reference"}, set()),
    "anchored_zero": ({"reference"}, set()),
    "cal_dpo": ({"reference"}, set()),
    "chipo": ({"reference"}, set()),
    "chosen_nll": (set(), set()),
    "cpo": (set(), {"preference"}),
    "discopop": ({"reference"}, set()),
    "dpop": ({"reference"}, set()),
    "exo": ({"reference"}, set()),
    "hinge": ({"reference"}, set()),
    "ld_dpo": ({"reference"}, {"preference"}),
    "nca": ({"reference"}, set()),
    "odpo": ({"reference", "score"}, set()),
    "orpo": (set(), set()),
    "refuel": ({"previous", "score"}, set()),
    "simpo": (set(), {"preference"}),
    "slic": (set(), set()),
    "wpo": ({"reference"}, {"preference"}),
    "sum": ({"reference"}, {"preference", "token_weight"}),  # of the least node below
}
LEAST = {"sum": {"of": [{"objective": {"name": "dpo"}}]}}  # what a node cannot do without


@every_name
def test_needs_and_accepts_are_those_of_the_contract(name):
    objective = objective_from({"name": name, **LEAST.get(name, {})})
    assert (objective.needs, objective.accepts) == TABLE[name]


@pytest.mark.parametrize(
    ("node", "needs", "accepts"),
    [
        ({"name": "apo", "inner": "sppo"}, {"previous", "earlier", "score"}, set()),
        ({"name": "apo", "inner": "dpo"}, {"previous", "earlier"}, {"preference"}),
        ({"name": "spo", "tau": 0.1}, {"previous", "score", "reference"}, set()),
        ({"name": "spo", "tau": 0}, {"previous", "score"}, set()),
    ],
)
def test_needs_hang_on_the_fields_where_the_contract_says_so(node, needs, accepts):
    objective = objective_from(node)
    assert (objective.needs, objective.accepts) == (needs, accepts)


def test_a_node_becomes_the_objective_it_names():
    assert objective_from({"name": "dpo", "beta": 0.3}) == DPO(beta=0.3)
    assert objective_from({"name": "ipo", "length_normalised": True}) == IPO(length_normalised=True)
    node: Mapping[str, object] = MappingProxyType({"name": "rpo", "eta": 0, "form": "average"})
    assert objective_from(node) == RPO(eta=0.0, form="average")


def test_numbers_as_yaml_1_1_reads_them_are_numbers():
    assert yaml.safe_load("1e-3") == "1e-3"  # PyYAML wants 1.0e-3
    assert objective_from({"name": "dpo", "beta": "1e-3"}) == DPO(beta=0.001)


def test_an_objective_is_given_back():
    objective = CDPO(label_smoothing=0.2)
    assert objective_from(objective) is objective


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({}, r"`objective\.name` is missing.*aot, aot_unpaired, apo, bco, bco_unpaired, beta"),
        ({"beta": 0.1}, r"`objective\.name` is missing"),
        ({"name": "dpoo"}, r"`objective\.name` is 'dpoo'.*did you mean `dpo`\?"),
        ({"name": "DPO"}, r"`objective\.name` is 'DPO'.*did you mean `dpo`\?"),
        ({"name": None}, r"`objective\.name` is None"),
        ({"name": ["dpo"]}, r"`objective\.name` is \['dpo'\]"),
        ({"name": "dpo", "betta": 1}, r"`objective\.betta` is no field.*did you mean `beta`\?"),
        ({"name": "ipo", "beta": 1}, r"`objective\.beta` is no field of `ipo`.*it has tau"),
        ({"name": "dpo", 1: 2}, r"`objective\.1` is no field"),
        ({"name": "dpo", "beta": 0}, r"`objective\.beta` is 0: .*greater than 0"),
        ({"name": "dpo", "beta": "much"}, r"`objective\.beta` is 'much': .*valid number"),
        ({"name": "dpo", "beta": True}, r"`beta` is a boolean"),
        ({"name": "rpo", "eta": -1e-9}, r"`objective\.eta` is -1e-09: .*or equal to 0"),
        ({"name": "rpo", "form": "mean"}, r"`objective\.form` is 'mean': .*'cumulative' or"),
        ({"name": "ipo", "length_normalised": 0.3}, r"`objective\.length_normalised` is 0\.3"),
        (
            {"name": "inpo", "eta": 0.1, "tau": 0.2},
            r"\(inpo\): `tau` is 0\.2, .*at most `eta`, 0\.1",
        ),
        ({"name": "spo", "eta": 4, "tau": 0.3}, r"\(spo\): `tau` is 0\.3, .*1 / `eta`, 0\.25"),
        ({"name": "apo", "momentum": 1}, r"`objective\.momentum` is 1: .*less than 1"),
        ({"name": "apo", "inner": "zero"}, r"`objective\.inner` is 'zero': .*'dpo' or 'sppo'"),
        ({"name": "p3o", "clip": 0}, r"`objective\.clip` is 0: .*greater than 0"),
        ("dpo", r"`objective` must be a mapping .*not 'dpo'"),
        (None, r"`objective` must be a mapping .*not None"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(node, text):
    with pytest.raises(RecipeError, match=text) as caught:
        objective_from(node)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        objective_from({"name": "rpo", "beta": -1, "form": "mean", "etta": 1})
    assert all(f"`objective.{key}`" in str(caught.value) for key in ("beta", "form", "etta"))


def test_the_union_can_be_a_field_of_a_recipe():
    class Recipe(BaseModel):
        objective: AnyObjective

    assert Recipe.model_validate({"objective": {"name": "sppo"}}).objective.name == "sppo"
    with pytest.raises(ValidationError, match=r"objective\.dpo\.betta"):
        Recipe.model_validate({"objective": {"name": "dpo", "betta": 1}})


def test_no_formula_file_is_outside_the_union():
    folder = Path(align.objectives.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "base",
        "checks",
        "coupled",
        "divergences",
    }
    assert files == set(NAMES)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_names_file_and_class_agree(member):
    name = member.model_fields["name"].default
    assert member.__module__ == f"align.objectives.{name}"
    assert member.__name__.lower() == name.replace("_", "")
    assert getattr(align.objectives, member.__name__) is member


# Completeness: an objective without one of these is not finished.


@every_name
def test_it_has_a_test_file(name, root):
    assert (root / f"tests/align/objectives/test_{name}.py").is_file()


def tiny_recipe(name: str, root: Path) -> Path:
    """In a folder of its own, or among those of the other libraries' losses."""
    own = root / f"recipes/{name}/tiny.yaml"
    return own if own.is_file() else root / f"recipes/peers/{name.replace('_', '-')}-tiny.yaml"


@every_name
def test_it_has_a_tiny_recipe(name, root):
    path = tiny_recipe(name, root)
    assert path.is_file(), f"{path.relative_to(root)} is missing"
    node = yaml.safe_load(path.read_text(encoding="utf-8"))["objective"]
    assert objective_from(node).name == name


@every_name
def test_it_has_a_row_in_the_table_of_losses(name, root):
    """A row of docs/losses.md that links the formula, names it, and links the tiny recipe."""
    lines = (root / "docs/losses.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and f"objectives/{name}.py" in line]
    assert rows, f"docs/losses.md has no table row with align/objectives/{name}.py"
    assert f"`{name}`" in rows[0]
    recipe = tiny_recipe(name, root).relative_to(root)
    assert f"(../{recipe})" in rows[0], f"that row does not link {recipe}"


@every_name
def test_a_method_with_a_folder_of_its_own_has_a_row_in_the_readme(name, root):
    """A table row that links the formula and the recipe's folder."""
    if not (root / "recipes" / name).is_dir():
        return
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and f"objectives/{name}.py" in line]
    assert rows, f"README.md has no table row with align/objectives/{name}.py"
    assert re.search(rf"recipes/{name}\b", rows[0]), f"that row does not name recipes/{name}"


def test_every_link_of_the_table_of_losses_leads_somewhere(root):
    text = (root / "docs/losses.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if not t.startswith("http")]
    assert len(targets) > 2 * len(NAMES)
    assert [t for t in targets if not (root / "docs" / t).exists()] == []
