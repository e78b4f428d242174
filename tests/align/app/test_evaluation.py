"""`align eval`: tables, resume, the dry run; and the evaluate stage of a loop."""

import json
from pathlib import Path

import pytest
import yaml

from align.app.check_recipe import check_recipe
from align.app.evaluation import evaluate_recipe
from align.app.loop import loop_recipe
from align.app.train import train_recipe
from align.errors import DataError, RecipeError
from align.stages.evaluate import scores_of
from tests import tiny_loops
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.scripted import read


def longer(body: dict) -> str:
    code, _, first, second = read(body)
    a, b = len(first), len(second)
    return f"VERDICT {code}: {'A' if a > b else 'B' if b > a else 'TIE'}"


@pytest.fixture
def judge():
    with FaultServer(longer) as server:
        yield server


def opponent(folder: Path) -> Path:
    rows = [
        {"instruction": text, "output": "a" * n, "generator": "base"}
        for n, text in enumerate(("abc", "bcd", "cde", "def"), start=1)
    ]
    path = folder / "base.json"
    path.write_text(json.dumps(rows))
    return path


def node_of(folder: Path, judge: FaultServer) -> dict:
    return {
        "run": "win_rate",
        "against": str(opponent(folder)),
        "annotator": {"base_url": judge.url, "model": "judge", "revision": "1"},
        "sampling": {"max_new_tokens": 32, "temperature": 0.0},
        "max_failed": 0.5,
    }


@pytest.fixture
def recipe(tmp_path: Path, policy: Path, judge: FaultServer) -> Path:
    path = tmp_path / "eval.yaml"
    nodes = {
        "model": {"model_name_or_path": str(policy)},
        "name": "mine",
        "evaluate": {"suite": [node_of(tmp_path, judge)]},
    }
    path.write_text(yaml.safe_dump(nodes))
    return path


def test_a_recipe_leaves_tables_and_asks_nothing_twice(
    recipe: Path, judge: FaultServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    table = evaluate_recipe(recipe, [], run)
    assert "mine" in table
    results = json.loads((run / "evaluation-1-win_rate" / "results.json").read_text())
    assert results["n"] == results["n_judged"] + results["n_failed"] == 4
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["n"] == 4
    assert metrics["scores"] == scores_of(results)
    assert "win_rate/win_rate" in metrics["scores"]
    asked = len(judge.bodies)
    assert asked >= 6  # three comparisons at least, in both orders
    assert evaluate_recipe(recipe, [], run) == table
    assert len(judge.bodies) == asked


def test_the_dry_run_names_files_that_are_not_there(recipe: Path, tmp_path: Path) -> None:
    assert "win_rate: its outputs are generated" in check_recipe(recipe, [], show_example=False)
    (tmp_path / "base.json").unlink()
    with pytest.raises(DataError, match=r"base\.json"):
        check_recipe(recipe, [], show_example=False)


def test_other_recipes_are_told_their_own_command(recipe: Path, place: Path, policy: Path) -> None:
    with pytest.raises(RecipeError, match="run `align eval "):
        train_recipe(recipe, [], None, ())
    with pytest.raises(RecipeError, match="nothing but a model and `evaluate`"):
        evaluate_recipe(tiny_loops.write_recipe(place, policy), [], None)
    with pytest.raises(RecipeError, match=r"evaluate\.suite\.0\.run: no evaluation '?wins"):
        evaluate_recipe(recipe, ["evaluate.suite.0.run=wins"], None)
    with pytest.raises(RecipeError, match=r"evaluate\.suite.*did you mean `win_rate`"):
        evaluate_recipe(recipe, ["evaluate.suite=[win_rat]"], None)
    with pytest.raises(RecipeError, match=r"evaluate\.suite: win_rate needs keys .*against"):
        evaluate_recipe(recipe, ["evaluate.suite=[win_rate]"], None)
    with pytest.raises(RecipeError, match=r"evaluations: .*evaluate: \{suite:"):
        evaluate_recipe(recipe, ["evaluations=[{run: tasks, tasks: [sums]}]"], None)
    with pytest.raises(RecipeError, match=r"data: a recipe of evaluations alone"):
        evaluate_recipe(recipe, ["data.pairs=x.jsonl"], None)


def test_scores_within_scores_have_a_path() -> None:
    result = {"evaluation": "tasks", "scores": {"sums": {"strict": 95.0, "version": "v1"}, "n": 3}}
    assert scores_of(result) == {"tasks/sums/strict": 95.0, "tasks/n": 3}


OWN = """
from typing import Literal

from align.estimates import mean
from align.evaluation import Measurement


class Width(Measurement):
    run: Literal["width"] = "width"
    times: float = 1.0

    def estimates(self, subject):
        found = subject.in_memory("width")
        assert found.model is found.reference
        return {"hidden": mean([self.times * found.model.config.hidden_size] * 3, what="width")}
"""


def test_a_measurement_of_ones_own_stands_beside_a_benchmark(
    recipe: Path, policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    width = json.loads((policy / "config.json").read_text())["hidden_size"]
    word = f"{tmp_path / 'own.py'}:Width"
    node = yaml.safe_load(recipe.read_text())["evaluate"]["suite"][0]
    run = tmp_path / "run"
    table = evaluate_recipe(recipe, ["evaluate.suite=" + json.dumps([word, node])], run)
    assert f"| {word}/hidden | {width:.4f} | {width:.4f} | {width:.4f} | 3 |" in table
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["after"][f"{word}/hidden"]["value"] == width
    assert "win_rate/win_rate" in metrics["scores"]
    assert (run / "evaluation-1-win_rate" / "results.json").is_file()
    # With keys of its own it is a mapping, as any other.
    suite = "evaluate.suite=" + json.dumps([{"run": word, "times": 2}])
    assert f"{2 * width:.4f}" in evaluate_recipe(recipe, [suite], tmp_path / "twice")
    with pytest.raises(RecipeError, match=r"evaluate\.suite\.0\.time: no such key; did you mean"):
        evaluate_recipe(recipe, [suite.replace("times", "time")], None)


@pytest.mark.parametrize("words", [[], ["preference"]])
def test_a_loop_measures_its_rounds_against_a_judge(
    place: Path, policy: Path, judge: FaultServer, tmp_path: Path, words: list[str]
) -> None:
    path = tiny_loops.write_recipe(
        place,
        policy,
        rounds=2,
        each_round=[*tiny_loops.STAGES, {"run": "evaluate"}],
        evaluate={"suite": [*words, node_of(place, judge)]},
    )
    run = tmp_path / "run"
    loop_recipe(path, [], run, ())
    kept = sorted(run.glob("rounds/*/*-evaluate/metrics/evaluation-1-win_rate/results.json"))
    assert [json.loads(file.read_text())["n"] for file in kept] == [4, 4]
    history = json.loads((run / "history.json").read_text())
    said = [row for row in history if row["stage"] == "evaluate"]
    assert all("win_rate/win_rate" in row for row in said)
    assert all(("preference/margin" in row) == bool(words) for row in said)
    assert bool(json.loads((run / "metrics.json").read_text())["after"]) == bool(words)
    stages = "each_round=" + json.dumps(yaml.safe_load(path.read_text())["each_round"][:-1])
    with pytest.raises(RecipeError, match=r"evaluate\.suite: no stage measures"):
        loop_recipe(path, [stages], tmp_path / "another", ())
