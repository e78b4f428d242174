"""`align data build`: stages without training, a data set on disk, resumed and pushed."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.app.check_recipe import Wanted, check_recipe
from align.app.data import build_data, show_tree
from align.app.train import train_recipe
from align.errors import DataError, RecipeError
from align.publishing.publishable import NotPublishable, publishable_files
from align_data.chunks import InProcess
from tests import tiny_loops

JUDGED = tiny_loops.STAGES[:3]
SEARCH = {
    "run": "mcts",
    "verify": "answers",
    # Right is whatever begins with one of the first four letters: the pattern finds "" there.
    "pattern": "^(?=[a-d])()",
    "confidence": "none",
    "step": "chunk",
    "min_step_characters": 1,
    "step_tokens": 2,
    "finish_tokens": 12,
    "first_breadth": 3,
    "depth": 2,
    "root_simulations": 8,
    "simulations": 4,
    "keep_trees": "all",
    "min_visits": 0,
    "chunk": 3,
}


@pytest.fixture
def recipe(place: Path, policy: Path) -> Callable[..., Path]:
    def write(build: Sequence[Any] = (SEARCH,), **changes: Any) -> Path:
        return tiny_loops.write_data_recipe(place, policy, build, **changes)

    return write


def rows_of(run: Path) -> bytes:
    (file,) = (run / "dataset" / "data").iterdir()
    return file.read_bytes()


def test_a_data_set_is_whole_and_made_once(recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = build_data(recipe(), [], run, ())
    metrics = json.loads((run / "metrics.json").read_text())
    rows = metrics["rows"]
    assert rows["read"] == rows["kept"] + sum(rows["dropped"].values())
    assert metrics["n"] == rows["kept"] > 3
    assert f"{rows['kept']} pairs of {rows['read']} candidates" in report
    assert (run / "recipe.yaml").is_file()
    card = (run / "dataset" / "README.md").read_text()
    assert f"| kept | {rows['kept']} |" in card
    assert "path: data/train-*.parquet" in card
    written = (run / "dataset" / "manifest.json").stat().st_mtime_ns
    assert build_data(recipe(), [], run, ()) == report
    assert (run / "dataset" / "manifest.json").stat().st_mtime_ns == written


def test_a_data_set_that_was_damaged_is_made_again(recipe, tmp_path: Path) -> None:
    build_data(recipe(), [], tmp_path / "run", ())
    before = rows_of(tmp_path / "run")
    (file,) = (tmp_path / "run" / "dataset" / "data").iterdir()
    file.write_bytes(before[:-1])
    build_data(recipe(), [], tmp_path / "run", ())
    assert rows_of(tmp_path / "run") == before


def test_a_search_that_broke_goes_on_behind_the_last_chunk(
    recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_data(recipe(), [], tmp_path / "straight", ())
    worked: list[int] = []
    run_whole = InProcess.run

    def run_and_break(self, chunks, opening):
        for n, done in enumerate(run_whole(self, chunks, opening)):
            worked.append(done[0].number)
            if len(worked) == 3:
                raise OSError("the machine went away")
            yield done
            assert n < 4

    monkeypatch.setattr(InProcess, "run", run_and_break)
    with pytest.raises(OSError, match="went away"):
        build_data(recipe(), [], tmp_path / "run", ())
    build_data(recipe(), [], tmp_path / "run", ())
    # Four chunks of three prompts; the third was not in the journal yet.
    assert worked == [0, 1, 2, 2, 3]
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "straight")


def test_stages_of_loops_make_data_too(recipe, tmp_path: Path) -> None:
    build_data(recipe(JUDGED), [], tmp_path / "run", ())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["quality"]["pairs"] == metrics["n"] > 0


def test_a_made_data_set_trains(recipe, place: Path, policy: Path, tmp_path: Path) -> None:
    import yaml

    build_data(recipe(), [], tmp_path / "run", ())
    training = tmp_path / "train.yaml"
    nodes = {
        "model": {"model_name_or_path": str(policy)},
        "roles": {"reference": "start"},
        "data": {"pairs": str(tmp_path / "run" / "dataset"), "held_out": 2},
        "objective": {"name": "dpo", "beta": 0.1},
        "train": tiny_loops.TRAIN | {"max_steps": 2},
    }
    training.write_text(yaml.safe_dump(nodes))
    train_recipe(training, [], tmp_path / "trained", ())
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    made = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"]["kept"] == made["n"]


def test_a_tree_is_shown_as_text_and_as_html(recipe, tmp_path: Path) -> None:
    build_data(recipe(), [], tmp_path / "run", ())
    text = show_tree(tmp_path / "run", 1, as_html=False)
    assert text.splitlines()[0].startswith(("a", "b", "c", "d", "e", "f", "g", "h"))
    assert "*[Q" in text
    assert "search-tree" in show_tree(tmp_path / "run", 1, as_html=True)
    with pytest.raises(DataError, match="12 trees; there is no tree 13"):
        show_tree(tmp_path / "run", 13, as_html=False)
    with pytest.raises(DataError, match="holds no tree"):
        show_tree(tmp_path, 1, as_html=False)


def test_the_dry_run_counts_the_prompts(recipe) -> None:
    said = check_recipe(recipe(), [], Wanted(example=True))
    assert "stages: mcts; they fit together" in said
    assert "prompts: 12, of which 0 cannot be continued" in said
    assert "<assistant>" in said


@pytest.mark.parametrize(
    ("build", "change", "said"),
    [
        ([SEARCH, {"run": "train"}], [], r"build\.1\.run: train makes no data"),
        ([JUDGED[0]], [], "no stage leaves pairs"),
        ([JUDGED[2]], [], "select.* reads judged"),
        ([SEARCH], ["objective={name: dpo}"], "take one of the two out"),
        ([SEARCH], ["rounds=3"], "take one of the two out"),
        ([SEARCH], ["seed=-1"], "seed: found -1; write an integer >= 0"),
        ([SEARCH], ["work={workers: 3}"], r"work\.workers: only `engine: ray` reads it"),
        ([SEARCH], ["build.0.backup=max"], r"build\.0\.backup: found max, expected one of"),
        ([SEARCH | {"gamma_": 1}], [], r"build\.0\.gamma_: no such key; did you mean"),
        ([SEARCH], ["prompts=null"], "prompts: is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    recipe, build, change: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        build_data(recipe(build), change, tmp_path / "run", ())


def test_training_a_data_recipe_says_what_to_run(recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"run `align data build .*data\.yaml`"):
        train_recipe(recipe(), [], tmp_path / "run", ())


def test_a_data_set_is_published_without_secrets_and_machine_paths(recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    build_data(recipe(), [], run, ())
    names = {file.name for file in publishable_files(run)}
    assert names == {
        "README.md",
        "data/train-00000-of-00001.parquet",
        "metrics.json",
        "recipe.yaml",
    }
    # The prompts' file, which is the rows' source, lies in a folder of this machine.
    assert str(tmp_path).encode() not in _texts(run)
    shutil.rmtree(run / "dataset" / "data")
    with pytest.raises(NotPublishable, match=r"dataset/data/\*\.parquet"):
        publishable_files(run)


def test_a_secret_within_the_rows_is_found(recipe, tmp_path: Path) -> None:
    import datasets

    run = tmp_path / "run"
    build_data(recipe(), [], run, ())
    (file,) = (run / "dataset" / "data").iterdir()
    token = "hf_" + "abcdefghij" * 4
    datasets.Dataset.from_list([{"prompt": token}]).to_parquet(file)
    with pytest.raises(NotPublishable, match="Secrets would be published"):
        publishable_files(run)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(NotPublishable, match="not Parquet"):
        publishable_files(run)


def _texts(run: Path) -> bytes:
    import pyarrow.parquet

    (file,) = (run / "dataset" / "data").iterdir()
    rows = pyarrow.parquet.read_table(file).to_pylist()
    return json.dumps(rows).encode() + b"".join(
        published.content or b"" for published in publishable_files(run)
    )
