"""A user's own code in a recipe, through both doors: a path, and an installed package."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from align import registry
from align.app.cli import main
from align.errors import RecipeError
from align.recipe import code_named, load_eval_recipe, load_recipe, recipe_key
from tests import tiny_loops

KIND_OF = {
    "starts_low": "reward",
    "later": "reward",
    "many": "reward",
    "first_is_lower": "reward",
    "Longest": "judge",
    "HalfDPO": "objective",
    "FirstOnly": "stage",
    "LowShare": "evaluation",
    "Letters": "world",
    "abc": "task",
    "plain_row": "reader",
    "upside_down": "policy",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("start"))


class House:
    """A folder of a user's, with own.py in it or installed under a name."""

    def __init__(self, folder: Path, start: Path, door: str) -> None:
        self.folder, self.start, self.door = folder, start, door
        tiny_loops.build_rows(folder)
        self.site = folder / "site"
        self.site.mkdir()
        source = Path(__file__).with_name("own.py")
        if door == "path":
            shutil.copy(source, folder / "own.py")
            return
        shutil.copy(source, self.site / "house_of_letters.py")
        info = self.site / "house_of_letters-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: house-of-letters\nVersion: 1.0\n")
        groups: dict[str, list[str]] = {}
        for thing, kind in KIND_OF.items():
            groups.setdefault(registry.GROUPS[kind], []).append(
                f"{thing.lower()} = house_of_letters:{thing}"
            )
        (info / "entry_points.txt").write_text(
            "".join(f"[{group}]\n" + "\n".join(lines) + "\n" for group, lines in groups.items())
        )

    def __call__(self, thing: str) -> str:
        """How a recipe names it."""
        return f"own.py:{thing}" if self.door == "path" else thing.lower()

    def loop(self, run: str, **changes: Any) -> dict[str, Any]:
        recipe = tiny_loops.write_recipe(self.folder, self.start, **changes)
        main(["loop", str(recipe), "--run", run])
        return json.loads((self.folder / run / "metrics.json").read_text())

    def ledger(self, run: str) -> list[dict[str, Any]]:
        text = (self.folder / run / "ledger.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def rows(self, run: str, kind: str, number: int = 1) -> list[dict[str, Any]]:
        (path,) = (self.folder / run / "rounds" / f"{number:04}").glob(f"[0-9]*/{kind}/rows.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(params=["path", "package"])
def house(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> House:
    made = House(tmp_path, start, request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(made.site))
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LETTERS_START", str(start))
    return made


def stages(*, judge: dict[str, Any], then: list[dict[str, Any]] | None = None) -> list[Any]:
    return [
        {"run": "generate", "samples": 4, "max_new_tokens": 16},
        {"run": "judge", **judge},
        {"run": "select", "rule": "best_vs_worst"},
        *(then or []),
        {"run": "train"},
    ]


def test_world_judge_stage_objective_and_evaluation_make_a_loop(house: House) -> None:
    world = f"world:{house('Letters')}"
    metrics = house.loop(
        "run",
        model={"model_name_or_path": world},
        prompts={"source": world, "per_round": 6},
        roles={"reference": "start"},
        objective={"name": house("HalfDPO"), "beta": 0.2},
        evaluate={"suite": [house("LowShare"), world], "n": 4},
        each_round=stages(
            judge={"by": house("Longest"), "factor": 2.0},
            then=[{"run": house("FirstOnly"), "most": 1}],
        ),
        rounds=1,
    )
    assert set(metrics["after"]) == {
        f"{house('LowShare')}/share",
        f"{house('LowShare')}/length",
        "letters/low",
    }
    for row in house.rows("run", "judged"):
        assert row["scores"] == [2.0 * len(text) for text in row["completions"]]
    (ledger,) = [
        line
        for line in map(
            json.loads, (house.folder / "run" / "ledger.jsonl").read_text().splitlines()
        )
        if line["step"] == "train"
    ]
    # One pair out of the own stage; at the start the margin is 0, and half of log 2 is .3466.
    assert ledger["about"]["pairs"] == 1
    assert ledger["about"]["loss"] == pytest.approx(0.34657, abs=1e-4)


def test_rewards_read_columns_and_are_weighted(house: House) -> None:
    rewards = [
        {"by": house("starts_low"), "weight": 10.0},
        {"by": house("many"), "weight": -1.0},
        {"by": "length", "weight": 0.5},
    ]
    house.loop("run", rounds=1, each_round=stages(judge={"by": "rewards", "rewards": rewards}))
    rows = house.rows("run", "judged")
    assert rows
    for row in rows:
        # The column `answer` is "" in every row.
        wanted = [10.0 * (text[:1] in "abcd") - 0.5 * len(text) for text in row["completions"]]
        assert row["scores"] == wanted


def test_a_comparison_fills_the_matrix(own: House) -> None:
    own.loop("run", rounds=1, each_round=stages(judge={"by": own("first_is_lower")}))
    row = own.rows("run", "judged")[0]
    assert row["scores"] is None
    for i, first in enumerate(row["completions"]):
        for j, second in enumerate(row["completions"]):
            a, b = first[:1], second[:1]
            assert row["preferences"][i][j] == (0.5 if a == b else float(a < b))


def test_nan_and_a_raising_function_are_failed_verdicts_with_file_line_and_row(
    own: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"by": own("later"), "max_failed": 1.0}
    own.loop("nan", rounds=1, each_round=stages(judge=judge))
    rows = own.rows("nan", "judged")
    said = [one for row in rows for one in row["failures"]]
    for row in rows:
        for text, score in zip(row["completions"], row["scores"], strict=True):
            assert score == (None if len(text) == 1 else float(len(text)))
    assert any("not_finite (the function returned nan" in one for one in said)
    drawn = {text for row in rows for text in row["completions"]}
    monkeypatch.setenv("BREAK_ON", min(drawn))
    judge = {"by": own("starts_low"), "max_failed": 1.0}
    own.loop("raised", rounds=1, each_round=stages(judge=judge))
    said = [one for row in own.rows("raised", "judged") for one in row["failures"]]
    place = "own.py"
    (one, *_) = [one for one in said if "ValueError: no such letters" in one]
    assert f"{place}:" in one
    assert "prompts.jsonl:" in one
    judge["max_failed"] = 0.0
    with pytest.raises(SystemExit) as stop:
        own.loop("stopped", rounds=1, each_round=stages(judge=judge))
    assert stop.value.code == 3


def test_an_engine_writes_the_completions(own: House) -> None:
    plain = stages(judge={"by": "length"})
    own.loop("plain", rounds=1, each_round=plain)
    turned = [{**plain[0], "engine": own("upside_down")}, *plain[1:]]
    own.loop("turned", rounds=1, each_round=turned)
    for before, after in zip(
        own.rows("plain", "completions"), own.rows("turned", "completions"), strict=True
    ):
        assert after["completions"] == [text[::-1] for text in before["completions"]]


def test_a_reader_an_objective_and_a_measurement_train_once(house: House) -> None:
    rows = [{"q": text + "a", "yes": "ab", "no": "hg", "skip": text == "c"} for text in "abcdefgh"]
    tiny_loops.write_rows(house.folder / "pairs.jsonl", rows)
    (house.folder / "train.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"model_name_or_path": str(house.start)},
                "data": {
                    "pairs": "pairs.jsonl",
                    "format": house("plain_row"),
                    "max_dropped": 0.5,
                    "held_out": 1,
                },
                "roles": {"reference": "start"},
                "objective": {"name": house("HalfDPO")},
                "train": tiny_loops.TRAIN,
                "evaluate": {"suite": ["preference", house("LowShare")]},
            }
        )
    )
    main(["train", "train.yaml", "--run", "run"])
    metrics = json.loads((house.folder / "run" / "metrics.json").read_text())
    assert metrics["data"]["dropped"] == {"left_out": 1}
    assert metrics["data"]["train"] == 6
    assert f"{house('LowShare')}/share" in metrics["before"]
    log = json.loads((house.folder / "run" / "log_history.json").read_text())
    assert log[0]["loss"] == pytest.approx(0.34657, abs=1e-3)


def test_a_task_is_measured(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    (house.folder / "eval.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"model_name_or_path": str(house.start)},
                "evaluate": {"suite": [{"run": "tasks", "tasks": [house("abc")]}]},
            }
        )
    )
    main(["eval", "eval.yaml", "--run", "run"])
    found = json.loads((house.folder / "run" / "metrics.json").read_text())
    assert found["scores"]["tasks/abc/n"] == 2
    assert "abc v1" in capsys.readouterr().out


@pytest.fixture
def own(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return House(tmp_path, start, "path")


def test_changing_the_function_makes_its_stage_again_and_the_generation_not(own: House) -> None:
    nodes = stages(judge={"by": "own.py:many"})
    own.loop("run", rounds=1, each_round=nodes)
    was = own.rows("run", "judged")[0]["scores"]
    source = own.folder / "own.py"
    source.write_text(source.read_text().replace("float(len(text)) for", "-float(len(text)) for"))
    own.loop("run", rounds=1, each_round=nodes)
    assert own.rows("run", "judged")[0]["scores"] == [-x for x in was]
    steps = [line["step"] for line in own.ledger("run")]
    assert steps.count("generate") == 1
    assert steps.count("judge") == 2


def test_another_content_of_the_file_is_another_run_where_no_stage_has_a_key(own: House) -> None:
    task = {
        **{"name": "t", "version": 1, "source": "rows", "rows": [{"question": "abc"}]},
        **{"strict": {"by": "own.py:exactly"}, "flexible": {"by": "own.py:exactly"}},
        "sampling": {"max_new_tokens": 8},
    }
    (own.folder / "task.yaml").write_text(yaml.safe_dump(task))
    (own.folder / "eval.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"model_name_or_path": str(own.start)},
                "evaluate": {"suite": [{"run": "tasks", "tasks": ["task.yaml"]}]},
            }
        )
    )
    loop = tiny_loops.write_recipe(
        own.folder, own.start, each_round=stages(judge={"by": "own.py:many"})
    )
    assert code_named(own.folder / "eval.yaml") == ["own.py:exactly"]
    before = [recipe_key(load_recipe(loop)), recipe_key(load_eval_recipe("eval.yaml"))]
    source = own.folder / "own.py"
    source.write_text(source.read_text() + "\n# changed\n")
    after = [recipe_key(load_recipe(loop)), recipe_key(load_eval_recipe("eval.yaml"))]
    assert after[0] == before[0], "what was generated is kept; the judge's stage has another key"
    assert after[1] != before[1]


def test_check_says_what_would_run_and_runs_nothing_of_it(
    own: House, capsys: pytest.CaptureFixture[str]
) -> None:
    source = own.folder / "own.py"
    source.write_text(source.read_text() + "\nopen('it-ran', 'w').close()\n")
    recipe = tiny_loops.write_recipe(
        own.folder, own.start, each_round=stages(judge={"by": "own.py:many"})
    )
    main(["check", str(recipe)])
    said = capsys.readouterr().out
    assert "code: many of own.py (" in said
    assert "--run-code" in said
    assert not (own.folder / "it-ran").exists()
    with pytest.raises(SystemExit) as stop:
        main(["recipe", "show", str(recipe)])
    assert stop.value.code == 2
    assert not (own.folder / "it-ran").exists()
    main(["check", str(recipe), "--run-code"])
    assert "the stages fit together" in capsys.readouterr().out
    assert (own.folder / "it-ran").exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("own.py:manyy", "own.py has no 'manyy'; did you mean `many`?"),
        ("other.py:many", "there is no file other.py"),
        ("no_such_module:many", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken.py:many", r"NameError: name 'nobody' is not defined \(.*broken.py:2\)"),
        ("syntax.py:many", r"SyntaxError: .*syntax.py"),
        ("own.py:exactly_two", "the function's parameters are a, b"),
        ("own.py:LETTERS", "is no function, and no subclass"),
        ("lenght", "did you mean `length`"),
        ("mcts", "mcts is a name of kind stage"),
    ],
)
def test_what_cannot_be_found_is_named(own: House, word: str, says: str) -> None:
    (own.folder / "broken.py").write_text("x = 1\nnobody()\n")
    (own.folder / "syntax.py").write_text("def many(:\n")
    source = own.folder / "own.py"
    source.write_text(source.read_text() + "\ndef exactly_two(a, b):\n    return 1\n")
    recipe = tiny_loops.write_recipe(own.folder, own.start, each_round=stages(judge={"by": word}))
    with pytest.raises(RecipeError, match=says):
        load_recipe(recipe)


def test_two_packages_with_one_name_are_refused(
    own: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        info = own.site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[align.judges]\nmine = {name}:Judge\n")
    monkeypatch.syspath_prepend(str(own.site))
    with pytest.raises(RecipeError, match=r"'mine' is given twice, by (one|two):.*(one|two):"):
        registry.names("judge")


def test_a_finished_training_is_not_taken_for_one_with_another_function(
    own: House, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": text + "a", "yes": "ab", "no": "hg", "skip": False} for text in "abcdefgh"]
    tiny_loops.write_rows(own.folder / "pairs.jsonl", rows)
    recipe = {
        "model": {"model_name_or_path": str(own.start)},
        "data": {"pairs": "pairs.jsonl", "format": "own.py:plain_row", "held_out": 1},
        "roles": {"reference": "start"},
        "objective": {"name": "dpo"},
        "train": {**tiny_loops.TRAIN, "max_steps": 1},
        "evaluate": {"suite": ["own.py:LowShare"]},
    }
    (own.folder / "train.yaml").write_text(yaml.safe_dump(recipe))
    main(["train", "train.yaml", "--run", "run"])
    # Measures of one's own stand in the table too.
    assert "own.py:LowShare/share" in capsys.readouterr().out.replace("\n", "")
    main(["train", "train.yaml", "--run", "run"])
    source = own.folder / "own.py"
    source.write_text(source.read_text() + "\n# changed\n")
    with pytest.raises(SystemExit) as stop:
        main(["train", "train.yaml", "--run", "run"])
    assert stop.value.code == 2
    assert "another content of own.py:LowShare, own.py:plain_row" in capsys.readouterr().err


def test_a_faulty_judge_is_said_at_its_own_key(own: House) -> None:
    recipe = tiny_loops.write_recipe(
        own.folder, own.start, each_round=stages(judge={"by": "nobody"})
    )
    with pytest.raises(RecipeError, match=r"each_round\.1\.by: no judge nobody"):
        load_recipe(recipe)


def place_of(what: str) -> str:
    """Where `faulty.py` raises."""
    lines = Path(__file__).with_name("faulty.py").read_text().splitlines()
    return f"faulty.py:{next(n for n, line in enumerate(lines, 1) if line.endswith(f'# {what}'))}"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "judge": ({"each_round": stages(judge={"by": "faulty.py:Scoring"})}, "KeyError: "),
    "stage": (
        {
            "each_round": stages(
                judge={"by": "rewards", "rewards": [{"by": "length"}]},
                then=[{"run": "faulty.py:Stage"}],
            )
        },
        "KeyError: 'no_such_column'",
    ),
    "objective": (
        {"objective": {"name": "faulty.py:Loss"}, "roles": {"reference": "start"}},
        "RuntimeError: The size of tensor",
    ),
    "measurement": (
        {
            "evaluate": {"suite": ["faulty.py:Measure"]},
            "each_round": [*stages(judge={"by": "length"}), {"run": "evaluate"}],
        },
        "TypeError: type str",
    ),
    "engine": (
        {
            "each_round": [
                {"run": "generate", "engine": "faulty.py:engine"},
                {"run": "judge", "by": "length"},
                {"run": "select", "rule": "best_vs_worst"},
                {"run": "train"},
            ]
        },
        "AssertionError. Mend",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_own_code_raises_is_told_with_its_place_and_without_a_trace(
    own: House, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(__file__).with_name("faulty.py"), own.folder / "faulty.py")
    changes, raised = FAULTS[what]
    with pytest.raises(SystemExit) as left:
        own.loop("run", rounds=1, **changes)
    said = capsys.readouterr().err
    paragraph = said[said.rindex(place_of(what)) :]
    assert left.value.code == 2
    assert raised in paragraph
    assert "your own code raised" in paragraph
    assert "run the same command again" in paragraph
    assert "Traceback" not in said


def test_a_reader_that_raises_is_counted_with_its_place(
    own: House, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(__file__).with_name("faulty.py"), own.folder / "faulty.py")
    tiny_loops.write_rows(own.folder / "pairs.jsonl", [{"q": "ab"}] * 3)
    (own.folder / "train.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"model_name_or_path": str(own.start)},
                "data": {"pairs": "pairs.jsonl", "format": "faulty.py:reader", "held_out": 1},
                "roles": {"reference": "start"},
                "objective": {"name": "dpo"},
            }
        )
    )
    with pytest.raises(SystemExit) as left:
        main(["train", "train.yaml", "--run", "run"])
    assert left.value.code == 3
    assert "KeyError in align_own_faulty" in (said := capsys.readouterr().err)
    assert f"({place_of('reader')})" in said


def test_a_mistake_of_ours_under_own_code_keeps_its_trace(
    own: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise RuntimeError("a mistake of ours")

    # Within the `with` of an own judge, whose generator the error passes through.
    monkeypatch.setattr("align.judges.rule.RuleJudge.score", broken)
    with pytest.raises(RuntimeError, match="of ours"):
        own.loop("run", rounds=1, each_round=stages(judge={"by": own("Longest")}))


def test_debug_shows_the_trace_of_own_code_too(
    own: House, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(__file__).with_name("faulty.py"), own.folder / "faulty.py")
    recipe = tiny_loops.write_recipe(own.folder, own.start, rounds=1, **FAULTS["engine"][0])
    with pytest.raises(SystemExit):
        main(["loop", str(recipe), "--run", "run", "--debug"])
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.rindex(place_of("engine")) > said.rindex("Traceback")
