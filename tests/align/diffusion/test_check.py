"""The dry run of a recipe for a diffusion model."""

import json
from pathlib import Path

import datasets
import pytest

from align.app.check_recipe import check_recipe
from align.diffusion import records
from align.errors import DataError, MachineError, RecipeError
from tests.align.diffusion import tiny_pipelines
from tests.e2e.stand_in_place import png

RECIPE = "seppo/sdxl-lora.yaml"


@pytest.fixture
def changes(tmp_path: Path) -> list[str]:
    tiny_pipelines.save_sdxl(tmp_path / "model")
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [{"image": "1.png", "caption": "a fox"}] * 6 + [{"image": "1.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"model.model_name_or_path={tmp_path / 'model'}",
        f"data.records={tmp_path / 'rows.jsonl'}",
        "data.held_out=2",
        "data.max_dropped=0.5",
    ]


def said(root: Path, changes: list[str]) -> str:
    return check_recipe(root / "recipes" / RECIPE, changes)


def test_records_rounds_and_weights_are_counted(root: Path, changes: list[str]) -> None:
    lines = said(root, changes).splitlines()
    assert lines[0].startswith("records: 7 rows read, 6 kept")
    # 30 updates of 2 x 16 records.
    assert lines[1] == "rounds: 7, each of 30 updates on 960 records per process"
    whole, trained = (
        int(part.split()[-1].replace(",", "")) for part in lines[2].split(", trained")
    )
    assert 0 < trained < whole
    whole_weights = [*changes, "model.use_peft=false", "model.dtype=float32"]
    assert said(root, whole_weights).splitlines()[2].endswith(f"{whole:,}, trained {whole:,}")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("data.held_out=6", DataError, "keeps 6 of 6 records"),
        ("data.max_dropped=0", DataError, "dropped"),
        ("data.records=./nowhere.jsonl", DataError, "no file here"),
        ("model.model_name_or_path=./nowhere", MachineError, "cannot be loaded as a pipeline"),
        ("model.lora_target_modules=[]", RecipeError, "is empty; name the layers"),
    ],
)
def test_what_would_end_a_run_is_said(
    root: Path, changes: list[str], change: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        said(root, [*changes, change])


def test_another_kind_of_pipeline_is_refused(root: Path, changes: list[str]) -> None:
    place = Path(changes[0].partition("=")[2]) / "model_index.json"
    place.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(RecipeError, match="is a FluxPipeline; recipes train"):
        said(root, changes)


def test_of_the_hub_only_the_first_rows_are_read(
    root: Path, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def rows():
        for number in range(10_000):
            read.append(number)
            yield {"image": png(1), "caption": "a fox"}

    monkeypatch.setattr(
        records, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows)
    )
    text = said(root, [*changes, "data.records=someone/pictures"])
    assert "no more than the first 64 were read" in text
    assert len(read) < 100
