import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.errors import DataError, MachineError, NumericalError, RecipeError
from align.recipe import Data, Hub, Model, Recipe, Roles, Train, resolved_yaml
from align.runs.folder import MADE, RunFolder

RECIPE = Recipe(
    model=Model(model_name_or_path="world:sums"),
    roles=Roles(reference="start"),
    data=Data(pairs="world:sums"),
    objective={"name": "dpo", "beta": 0.1},  # type: ignore[arg-type]
)


def changed(**sections: object) -> str:
    return resolved_yaml(RECIPE.model_copy(update=sections))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def claim(run: RunFolder, recipe_yaml: str) -> None:
    run.claim(recipe_yaml)
    run.release()


def test_the_same_recipe_finds_its_folder_again(run: RunFolder) -> None:
    claim(run, changed())
    run.write_json("metrics.json", {"n": 1})
    claim(run, changed())
    assert run.read_json("metrics.json") == {"n": 1}
    assert (run.path / "recipe.yaml").read_text() == changed()


def test_another_hub_section_keeps_the_run_and_is_written_down(run: RunFolder) -> None:
    claim(run, changed())
    run.write_json("metrics.json", {"n": 1})
    pushed = changed(hub=Hub(push=True, repo="ana/sums"))
    assert pushed != changed()
    claim(run, pushed)
    assert run.read_json("metrics.json") == {"n": 1}
    assert (run.path / "recipe.yaml").read_text() == pushed


def test_another_recipe_takes_a_folder_in_which_nothing_was_made(run: RunFolder) -> None:
    claim(run, changed())
    other = changed(train=Train(seed=7))
    claim(run, other)
    assert (run.path / "recipe.yaml").read_text() == other


@pytest.mark.parametrize("made", MADE)
def test_another_recipe_is_refused_with_the_lines_that_differ(run: RunFolder, made: str) -> None:
    claim(run, changed())
    (run.path / made).touch()
    other = changed(train=Train(seed=7), hub=Hub(push=True, repo="ana/sums"))
    with pytest.raises(RecipeError) as refused:
        run.claim(other)
    said = str(refused.value)
    assert "holds a run of another recipe: -  seed: 42; +  seed: 7 (- was, + now)." in said
    assert "--run" in said
    assert "ana/sums" not in said
    assert (run.path / "recipe.yaml").read_text() == changed()


def test_a_refused_claim_leaves_the_folder_free(run: RunFolder) -> None:
    claim(run, changed())
    run.write_json("before.json", {})
    with pytest.raises(RecipeError, match="another recipe"):
        run.claim(changed(train=Train(seed=7)))
    claim(RunFolder(run.path), changed())


def test_a_second_process_is_refused_until_the_first_lets_go(run: RunFolder) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom align.runs.folder import MADE, RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]))\nrun.claim(sys.argv[2])\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path), changed()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match=r"Another process is writing in .*/run"):
            run.claim(changed())
        other.communicate("")
    assert other.returncode == 0
    claim(run, changed())


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            RecipeError, match=r"it, or a folder above it, is a file\. Give another --run"
        ):
            RunFolder(path).claim(changed())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_cannot_lock_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("align.runs.folder.fcntl.flock", flock)
    with pytest.raises(MachineError, match=r"cannot be used \(No locks available\)"):
        run.claim(changed())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_and_the_old_file_stays(
    run: RunFolder, number: float
) -> None:
    claim(run, changed())
    run.write_json("metrics.json", {"loss": 0.5})
    with pytest.raises(NumericalError, match=r"metrics\.json would hold a number"):
        run.write_json("metrics.json", {"loss": [1.0, number]})
    assert run.read_json("metrics.json") == {"loss": 0.5}
    assert sorted(path.name for path in run.path.iterdir()) == [
        ".lock", "metrics.json", "recipe.yaml"
    ]  # fmt: skip


def test_an_absent_file_is_none_and_a_broken_one_is_told(run: RunFolder) -> None:
    claim(run, changed())
    assert run.read_json("metrics.json") is None
    (run.path / "metrics.json").write_text('{"loss": ')
    with pytest.raises(DataError, match=r"metrics\.json is no longer the JSON .* Delete it"):
        run.read_json("metrics.json")


def verifies(line: str) -> bool:
    """Whether the first 16 hex digits of the sha256 of all other keys, sorted, stand in a line."""
    entry = json.loads(line)
    said = entry.pop("sha256")
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16] == said


def test_every_line_of_the_ledger_carries_a_checksum_that_verifies(run: RunFolder) -> None:
    claim(run, changed())
    run.record("pairs", 1.25, {"read": 64, "kept": 60})
    run.record("train", 2.0, {"roles": {"reference": "start"}, "note": "ä"})
    lines = (run.path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == ["pairs", "train"]
    assert json.loads(lines[0])["seconds"] == 1.25
    assert all(verifies(line) for line in lines)
    assert not verifies(lines[0].replace('"kept": 60', '"kept": 61'))
