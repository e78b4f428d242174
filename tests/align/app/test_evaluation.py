"""`align eval`: tables, resume, the dry run; and the evaluate stage of a loop."""

import json
import re
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
    recipe: Path, judge: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with caplog.at_level("INFO", logger="align"):
        table = evaluate_recipe(recipe, [], run)
    assert "mine" in table
    said = [message for message in caplog.messages if message.startswith("win_rate:")]
    assert len(said) == 1
    assert re.match(r"win_rate: win_rate [\d.]+, .*wins \d", said[0])
    assert not set('{}"') & set(said[0])
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


def test_a_flag_stands_beside_the_scores(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate_recipe(recipe, ["evaluate.suite.0.limit=2"], run)
    metrics = json.loads((run / "metrics.json").read_text())
    words = "the first 2 of 4 questions only: comparable with no leaderboard"
    assert metrics["flags"] == {"win_rate": words}
    assert metrics["n"] == 2


def test_what_the_token_limit_cuts_off_is_judged(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    table = evaluate_recipe(recipe, ["evaluate.suite.0.sampling={max_new_tokens: 1}"], run)
    results = json.loads((run / "evaluation-1-win_rate" / "results.json").read_text())
    sampling = results["provenance"]["outputs"]["sampling"]
    assert (sampling["max_new_tokens"], sampling["temperature"]) == (1, 0.0)
    assert (results["n_judged"], results["n_cut"]) == (4, 4)
    assert "4 judged, 0 failed, 4 cut off" in table
    assert "Outputs of mine: greedy, at most 1 tokens." in table


def test_the_dry_run_names_files_that_are_not_there(recipe: Path, tmp_path: Path) -> None:
    assert "win_rate: its outputs are generated" in check_recipe(recipe, [])
    (tmp_path / "base.json").unlink()
    with pytest.raises(DataError, match=r"base\.json"):
        check_recipe(recipe, [])


def checked(folder: Path, *suite: dict | str) -> str:
    """What `align check` says of a recipe that measures this."""
    path = folder / "checked.yaml"
    node = {"model": {"model_name_or_path": "world:sums"}, "evaluate": {"suite": list(suite)}}
    path.write_text(yaml.safe_dump(node))
    return check_recipe(path, [])


TASK = """
name: capitals
version: 1
source: file
question: ask
answer: known
strict: {by: pattern}
flexible: {by: pattern}
sampling: {max_new_tokens: 8}
"""


def test_the_dry_run_reads_tasks_and_their_questions(tmp_path: Path) -> None:
    task, rows = tmp_path / "capitals.yaml", tmp_path / "rows.jsonl"
    node = {"run": "tasks", "tasks": [str(task), "sums"], "files": {"capitals": str(rows)}, "n": 3}
    with pytest.raises(DataError, match=r"are not there: .*capitals\.yaml, .*rows\.jsonl"):
        checked(tmp_path, node)
    task.write_text(TASK)
    rows.write_text("".join(json.dumps({"ask": f"q{i}", "known": i}) + "\n" for i in range(5)))
    said = checked(tmp_path, node)
    assert f"files: {task}, {rows}" in said
    assert "capitals v1: 3 questions, temperature 1, at most 8 tokens" in said
    assert "sums v1: 3 questions, greedy, at most 32 tokens" in said
    task.write_text(TASK.replace("strict: {by:", "strict: {bye:"))
    with pytest.raises(RecipeError, match=r"capitals.yaml: strict.* no such key; did you mean `by"):
        checked(tmp_path, node)
    task.write_text(TASK)
    rows.write_text('{"ask": "q", "known": "1"}\n{"ask": "q", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: the row has no known; .* has ask, answer"):
        checked(tmp_path, node)
    with pytest.raises(RecipeError, match=r"files: capital is none .* did you mean `capitals`"):
        checked(tmp_path, {**node, "files": {"capital": str(rows)}})
    with pytest.raises(RecipeError, match="the task capitals reads a file: give one"):
        checked(tmp_path, {**node, "files": {}})


def test_the_dry_run_reads_the_questions_of_judged_benchmarks(tmp_path: Path) -> None:
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "revision": "1"}
    base, mine = opponent(tmp_path), tmp_path / "mine.json"
    alpaca = {"run": "alpaca_eval", "reference_outputs": str(base), "annotator": judge}
    said = checked(tmp_path, {**alpaca, "limit": 2, "sampling": {"max_new_tokens": 9}})
    assert "questions: the first 2 of 4" in said
    assert "judge at http://127.0.0.1:9/v1, at most 2 calls" in said
    assert "answers: greedy, at most 9 tokens" in said
    assert "There is no length-controlled win rate" in said
    mine.write_text(json.dumps([{"instruction": "abc", "text": "x"}]))
    with pytest.raises(DataError, match=r"mine.json:1: the row has no output; .* has instruction,"):
        checked(tmp_path, {**alpaca, "outputs": str(mine)})
    mine.write_text("index,instruction_difficulty\n0,1.5\n")
    with pytest.raises(DataError, match="of 1 instructions, and there are 4"):
        checked(tmp_path, {**alpaca, "difficulty": str(mine)})
    win = {"run": "win_rate", "against": str(base), "annotator": judge}
    assert "at most 8 calls" in checked(tmp_path, win)

    questions, answers = tmp_path / "question.jsonl", tmp_path / "gpt-4-0314.jsonl"
    arena = {
        "run": "arena_hard",
        "version": "v0.1",
        "questions": str(questions),
        "baseline_answers": [str(answers)],
        "annotator": judge,
    }
    row = {"uid": "u", "category": "arena-hard-v0.1", "prompt": "p"}
    said = {"uid": "u", "model": "gpt-4-0314", "messages": [{"content": "x"}]}
    questions.write_text(json.dumps({**row, "turns": []} | {"uid": "v"}) + "\n")
    answers.write_text(json.dumps(said) + "\n")
    with pytest.raises(DataError, match="baseline gpt-4-0314 has no answer to question v"):
        checked(tmp_path, arena)
    questions.write_text(json.dumps(row) + "\n")
    assert "questions: 1\n" in checked(tmp_path, arena)
    del row["prompt"]
    questions.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"question\.jsonl:1: the row has no prompt"):
        checked(tmp_path, arena)


def test_the_dry_run_of_measurements_names_no_outputs(tmp_path: Path) -> None:
    assert checked(tmp_path, "sums") == "sums: measured on the model itself"
    with pytest.raises(RecipeError, match=r"evaluate\.suite: preference needs held-out pairs"):
        checked(tmp_path, "preference")


def test_the_dry_run_of_a_loop_reads_the_files_of_its_benchmarks(
    place: Path, policy: Path, judge: FaultServer
) -> None:
    path = tiny_loops.write_recipe(
        place,
        policy,
        each_round=[*tiny_loops.STAGES, {"run": "evaluate"}],
        evaluate={"suite": [node_of(place, judge)]},
    )
    assert "win_rate: its outputs are generated; files: " in check_recipe(path, [])
    (place / "base.json").unlink()
    with pytest.raises(DataError, match=r"base\.json"):
        check_recipe(path, [])


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
