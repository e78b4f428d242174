"""A sum in a recipe: what is wrong within is told by its key path and line."""

from pathlib import Path

import pytest

from align.app.recipes import load_any
from align.errors import RecipeError
from align.objectives import DPO, SimPO
from align.objectives.sum import Part, Sum
from align.recipe import resolved_yaml
from align.recipe.explaining import explain

HEAD = """model: {model_name_or_path: world:sums}
roles: {reference: start}
data: {pairs: world:sums, held_out: 8}
objective:
  name: sum
  of:
"""


def written(folder: Path, terms: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(HEAD + terms)
    return path


def test_it_is_read_and_written_back(tmp_path: Path) -> None:
    terms = (
        "  - {weight: 0.8, objective: {name: dpo}}\n  - {objective: {name: simpo, gamma: 0.5}}\n"
    )
    recipe = load_any(written(tmp_path, terms))
    parts = (Part(weight=0.8, objective=DPO()), Part(objective=SimPO(gamma=0.5)))
    assert recipe.objective == Sum(of=parts)
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(recipe))
    assert load_any(again) == recipe


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (
            "  - {weight: -1, objective: {name: dpo, betta: 1}}\n  - {objective: {name: dppo}}\n",
            [
                "r.yaml:7: objective.of.0.weight: found -1, expected a number > 0",
                "r.yaml:7: objective.of.0.objective.betta: no such key; did you mean "
                "`objective.of.0.objective.beta`?",
                "r.yaml:8: objective.of.1.objective.name: no objective dppo; did you mean `dpo`?",
            ],
        ),
        (
            "  - {objective: {name: dpo, beta: true}}\n  - {x: 1}\n",
            [
                "r.yaml:7: objective.of.0.objective.beta: found true, expected a number > 0",
                "r.yaml:8: objective.of.1.objective: is missing",
                "r.yaml:8: objective.of.1.x: no such key; the keys here are weight, pair_weight, "
                "objective",
            ],
        ),
        (
            "  - objective: {name: sum, of: [{objective: {name: rpo, form: mean}}]}\n",
            ["objective.of.0.objective.of.0.objective.form: found mean, expected one of"],
        ),
        ("    []\n", ["objective.of: found []: a sum has at least 1 term"]),
    ],
)
def test_faults_are_told_by_key_and_line(tmp_path: Path, terms: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_any(written(tmp_path, terms))
    for one in said:
        assert one in str(caught.value)


def test_its_terms_are_explained() -> None:
    assert "a list of" in explain("objective.sum.of")
    assert explain("objective.sum.of.weight").splitlines()[1:] == [
        "  a number > 0",
        "  default: 1.0",
    ]
