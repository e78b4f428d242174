"""The wheel alone, in a folder that has an `eval` and a `data_pipelines` of its own."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests import tiny_loops

pytestmark = pytest.mark.e2e
RUN_ALL = """
import json, runpy, sys
import align
print(align.__file__)
for words in json.loads(sys.argv[1]):
    sys.argv = ["align", *words]
    runpy.run_module("align", run_name="__main__")
"""
OWN = "raise RuntimeError('the folder of a user, which nobody else may import')\n"


@pytest.fixture(scope="module")
def shipped(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(root)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_only_the_three_packages_and_the_task_files_are_in_it(shipped: Path) -> None:
    found = {path.name for path in shipped.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"align", "align_data", "align_eval"}
    tasks = {path.name for path in (shipped / "align_eval" / "task_files").glob("*.yaml")}
    assert tasks == {"gsm8k.yaml", "sums.yaml", "styles.yaml"}


def test_it_trains_loops_and_measures_beside_folders_of_the_same_names(
    shipped: Path, tmp_path: Path
) -> None:
    for name in ("eval", "data_pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(OWN)
    start = tiny_loops.build_policy(tmp_path / "start")
    tiny_loops.build_rows(tmp_path)
    loop = tiny_loops.write_recipe(tmp_path, start, rounds=1)
    recipes = {
        "loop": str(loop),
        "train": {
            "model": {"model_name_or_path": str(start)},
            "data": {"pairs": "eval.jsonl", "held_out": 1},
            "roles": {"reference": "start"},
            "objective": {"name": "dpo"},
            "train": tiny_loops.TRAIN,
        },
        "eval": {
            "model": {"model_name_or_path": str(start)},
            "evaluate": {"suite": [{"run": "tasks", "tasks": ["abc.yaml"]}]},
        },
    }
    task = {
        "name": "abc",
        "version": 1,
        "source": "rows",
        "rows": [{"question": "abc", "answer": "a"}],
        "strict": {"by": "pattern", "pattern": "^."},
        "flexible": {"by": "pattern", "pattern": "^."},
        "sampling": {"max_new_tokens": 8},
    }
    (tmp_path / "abc.yaml").write_text(yaml.safe_dump(task))
    environment = tiny_loops.environment(shipped, tmp_path / "cache")
    commands = []
    for command, recipe in recipes.items():
        path = recipe
        if isinstance(recipe, dict):
            path = f"{command}.yaml"
            (tmp_path / path).write_text(yaml.safe_dump(recipe))
        commands.append([command, path, "--run", f"run-{command}"])
    # One process for all three: importing torch and its kin takes longer than each of them.
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(shipped) in done.stdout.splitlines()[0]
    for command in recipes:
        assert json.loads((tmp_path / f"run-{command}" / "metrics.json").read_text())["n"] > 0
