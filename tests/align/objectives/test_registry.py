"""`objective_from`, and that every member of the union is complete: file, test, recipe, README."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import pytest
import torch
import yaml
from pydantic import BaseModel, ValidationError

import align.objectives
from align.errors import RecipeError
from align.objectives import (
    CDPO,
    DPO,
    IPO,
    KTO,
    RPO,
    AnyGroupObjective,
    AnyObjective,
    GroupObjective,
    Objective,
    objective_from,
)
from align.types import GroupInputs, Logps

MEMBERS: list[type[Objective]] = list(get_args(get_args(AnyObjective)[0]))
GROUP_MEMBERS: list[type[GroupObjective]] = list(get_args(get_args(AnyGroupObjective)[0]))
NAMES = [member.model_fields["name"].default for member in MEMBERS]
GROUP_NAMES = [member.model_fields["name"].default for member in GROUP_MEMBERS]
every_name = pytest.mark.parametrize("name", NAMES)
every_group_name = pytest.mark.parametrize("name", GROUP_NAMES)

TABLE = {  # the contract: needs, accepts
    "dpo": ({"reference"}, {"preference", "token_weight"}),
    "cdpo": ({"reference"}, set()),
    "ipo": ({"reference"}, {"preference"}),
    "rdpo": ({"reference"}, set()),
    "rpo": ({"reference"}, {"preference"}),
    "tdpo": ({"reference"}, {"preference"}),
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
    # over groups of completions
    "anchored_zero_unpaired": ({"reference", "label"}, set()),
    "bco_unpaired": ({"reference", "label"}, set()),
    "cispo": ({"previous", "score"}, set()),
    "copg_group": ({"reference", "score"}, set()),
    "dapo": ({"previous", "score"}, set()),
    "direct_advantage": ({"reference", "advantage"}, set()),
    "gepo": ({"reference", "label"}, set()),
    "gmpo": ({"previous", "score"}, set()),
    "group_relative": ({"previous", "score"}, set()),
    "gspo": ({"previous", "score"}, set()),
    "kto": ({"reference", "label"}, {"mismatched"}),
    "lipo": ({"reference", "score"}, set()),
    "luspo": ({"previous", "score"}, set()),
    "nft": ({"previous", "score"}, set()),
    "plackett_luce": ({"reference", "score"}, set()),
    "reinforce_pp": ({"previous", "reference", "score"}, set()),
    "remax": ({"previous", "reference", "advantage"}, set()),
    "rloo": ({"previous", "reference", "score"}, set()),
    "rto": ({"reference", "previous", "guide", "score"}, set()),
    "sapo": ({"previous", "score"}, set()),
    "trpa": ({"reference", "previous", "score"}, set()),
    "vespo": ({"previous", "score"}, set()),
}
LEAST = {"sum": {"of": [{"objective": {"name": "dpo"}}]}}  # what a node cannot do without


@pytest.mark.parametrize("name", [*NAMES, *GROUP_NAMES])
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
        ({"name": "nft", "verdict": "label"}, {"previous", "label"}, set()),
        ({"name": "remax", "kl_beta": 0}, {"advantage"}, set()),
        ({"name": "trpa", "trust_weight": 0}, {"reference", "score"}, set()),
        ({"name": "group_relative", "kl_beta": 0.1}, {"previous", "score", "reference"}, set()),
        ({"name": "vespo", "kl_beta": 0.1}, {"previous", "score", "reference"}, set()),
        ({"name": "rloo", "kl_beta": 0}, {"previous", "score"}, set()),
        ({"name": "reinforce_pp", "kl_beta": 0}, {"previous", "score"}, set()),
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


def test_a_name_is_one_of_pairs_or_one_of_groups():
    assert not set(NAMES) & set(GROUP_NAMES)
    assert isinstance(objective_from({"name": "kto", "beta": 0.2}), KTO)
    assert objective_from({"name": "kto"}, GroupObjective) == KTO()
    assert objective_from({"name": "dpo"}, Objective) == DPO()
    assert objective_from(KTO(beta=0.3), GroupObjective) == KTO(beta=0.3)


@pytest.mark.parametrize(
    ("node", "over", "text"),
    [
        ({"name": "kto"}, Objective, r"'kto', a loss over completions in groups.* preference pa"),
        (KTO(), Objective, r"'kto', a loss over completions in groups, but .* preference pairs"),
        ({"name": "dpo"}, GroupObjective, r"'dpo', a loss over preference pairs, but .* groups"),
        ({"name": "ktoo"}, Objective, r"is 'ktoo'.*did you mean `kto`\?"),
        ({"name": "kto", "beta": 0}, Objective, r"`objective\.beta` is 0: .*greater than 0"),
        ({"name": "group_relative", "divisor": True}, GroupObjective, "`divisor` is a boolean"),
        (
            {"name": "sum", "of": [{"objective": {"name": "kto"}}]},
            Objective,
            r"`objective\.of\.0\.objective`: `kto` is a loss over groups; a sum is one over pairs",
        ),
    ],
)
def test_the_other_kind_of_loss_is_refused(node, over, text):
    with pytest.raises(RecipeError, match=text):
        objective_from(node, over)


def test_a_loss_over_groups_of_ones_own_is_one(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from typing import Literal\n"
        "from align.objectives.base import present\n"
        "from align.objectives.groups.base import GroupObjective, group_logratio\n"
        "from align.types import GroupOutput\n\n\n"
        "class Weighed(GroupObjective, frozen=True):\n"
        '    name: Literal["weighed"] = "weighed"\n'
        '    needs = frozenset({"reference", "score"})\n'
        "    power: float = 1.0\n\n"
        "    def __call__(self, inputs):\n"
        "        inputs = self.checked(inputs)\n"
        "        rho = group_logratio(inputs, inputs.reference)\n"
        "        loss = -present(inputs.score) ** self.power * rho\n"
        "        return GroupOutput(loss, rho.detach(), {})\n"
    )
    name = f"{path}:Weighed"
    found = objective_from({"name": name, "power": 2.0}, GroupObjective)
    mask = torch.ones(2, 1, dtype=torch.bool)
    one, two = (Logps(torch.full((2, 1), at), mask) for at in (-1.0, -2.0))
    score = torch.tensor([2.0, 3.0])
    inputs = GroupInputs(policy=one, group=torch.zeros(2).long(), reference=two, score=score)
    assert found(inputs).loss.tolist() == [-4.0, -9.0]
    with pytest.raises(RecipeError, match="a loss over completions in groups"):
        objective_from({"name": name}, Objective)
    with pytest.raises(RecipeError, match=r"`objective\.pover` .*did you mean `power`\?"):
        objective_from({"name": name, "pover": 2.0})


def test_no_formula_file_is_outside_its_union():
    folder = Path(align.objectives.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "base",
        "checks",
        "coupled",
        "divergences",
        "refusals",
    }
    assert files == set(NAMES)
    files = {path.stem for path in (folder / "groups").glob("*.py")}
    shared = {"__init__", "advantages", "base", "checks", "token_mean", "tokens"}
    assert files - shared == set(GROUP_NAMES)


@pytest.mark.parametrize("member", [*MEMBERS, *GROUP_MEMBERS], ids=lambda m: m.__name__)
def test_names_file_and_class_agree(member):
    name = member.model_fields["name"].default
    room = "align.objectives.groups" if member in GROUP_MEMBERS else "align.objectives"
    assert member.__module__ == f"{room}.{name}"
    assert member.__name__.lower() == name.replace("_", "")
    assert getattr(align.objectives, member.__name__) is member


# Completeness: an objective without one of these is not finished.


@every_name
def test_it_has_a_test_file(name, root):
    assert (root / f"tests/align/objectives/test_{name}.py").is_file()


@every_group_name
def test_one_over_groups_has_a_test_file_and_a_row_in_the_table_of_losses(name, root):
    assert (root / f"tests/align/objectives/groups/test_{name}.py").is_file()
    lines = (root / "docs/losses.md").read_text(encoding="utf-8").splitlines()
    path = f"(../align/objectives/groups/{name}.py)"
    rows = [line for line in lines if line.startswith("|") and path in line]
    assert len(rows) == 1, f"docs/losses.md has no table row with {path}"
    assert f"`{name}`" in rows[0]
    assert f"(../recipes/groups/{name.replace('_', '-')}-tiny.yaml)" in rows[0]


@every_group_name
def test_one_over_groups_has_a_tiny_recipe_with_its_numbers(name, root):
    file = f"{name.replace('_', '-')}-tiny.yaml"
    path = root / "recipes/groups" / file
    node = yaml.safe_load(path.read_text(encoding="utf-8"))["objective"]
    assert objective_from(node).name == name
    readme = (root / "recipes/groups/README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in readme if f"({file})" in line]
    assert re.search(r"\d\d\.\d \[", row), "no number with its interval"


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
