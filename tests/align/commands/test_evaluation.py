"""`align eval`: tables, resume, the dry run; and the evaluate stage of a loop."""

import json
from pathlib import Path

import pytest
import yaml

from align.commands import check_recipe, train_recipe
from align.commands.evaluation import evaluate_recipe, scores_of
from align.commands.loop import loop_recipe
from align.errors import DataError, RecipeError
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
        "evaluations": [node_of(tmp_path, judge)],
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
    with pytest.raises(RecipeError, match="nothing but a model and `evaluations`"):
        evaluate_recipe(tiny_loops.write_recipe(place, policy), [], None)
    with pytest.raises(RecipeError, match=r"evaluations\.0\.run: no stage wins"):
        evaluate_recipe(recipe, ["evaluations.0.run=wins"], None)
    with pytest.raises(RecipeError, match=r"data: a recipe of evaluations alone"):
        evaluate_recipe(recipe, ["data.pairs=x.jsonl"], None)


def test_scores_within_scores_have_a_path() -> None:
    result = {"evaluation": "tasks", "scores": {"sums": {"strict": 95.0, "version": "v1"}, "n": 3}}
    assert scores_of(result) == {"tasks/sums/strict": 95.0, "tasks/n": 3}


def test_a_loop_measures_its_rounds_against_a_judge(
    place: Path, policy: Path, judge: FaultServer, tmp_path: Path
) -> None:
    path = tiny_loops.write_recipe(
        place,
        policy,
        rounds=2,
        each_round=[*tiny_loops.STAGES, {"run": "evaluate"}],
        evaluations=[node_of(place, judge)],
    )
    run = tmp_path / "run"
    loop_recipe(path, [], run, ())
    kept = sorted(run.glob("rounds/*/*-evaluate/metrics/evaluation-1-win_rate/results.json"))
    assert [json.loads(file.read_text())["n"] for file in kept] == [4, 4]
    history = json.loads((run / "history.json").read_text())
    said = [row for row in history if row["stage"] == "evaluate"]
    assert all("win_rate/win_rate" in row for row in said)
    with pytest.raises(RecipeError, match="no stage measures"):
        loop_recipe(path, [f"each_round={json.dumps(list(tiny_loops.STAGES))}"], run, ())
