"""Every recipe loads; every tiny one runs through the real command and leaves a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.app.cli import main
from align.app.recipes import load_any
from align.data.pair_files import read_pairs
from align.data.row_policy import RowPolicy
from align.recipe import kind_of, resolved_yaml
from align.runs.manifest import damage

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
OURS = [path for path in RECIPES if path.parent.name != "accelerate"]
DATA = [path for path in OURS if kind_of(path) == "data"]
TRAINING = [path for path in OURS if kind_of(path) == "train"]
TINY = [
    path
    for path in TRAINING
    if path.stem in ("tiny", "offline-tiny", "styles-tiny") and path.parent.name != "opa_dpo"
]
LOOPS = [path for path in TINY if "rounds" in yaml.safe_load(path.read_text())]
OFFLINE = [path for path in TINY if path not in LOOPS]
TINY_DATA = [path for path in DATA if path.stem.endswith("tiny")]
PIPELINE_LOOPS = [
    path
    for path in TRAINING
    if path.stem.endswith("loop-tiny") or path.parts[-2:] == ("opa_dpo", "tiny.yaml")
]
ON_POLICY = {
    *("iterative_dpo", "iterative_rpo", "inpo", "nash_mp", "apo", "spo", "p3o", "copg"),
}
# Small enough for seconds, large enough that every part has something to do.
SMALL = (
    "data.sample.prompts=96",
    "data.held_out=8",
    "train.max_steps=3",
    "train.per_device_train_batch_size=8",
    "train.logging_steps=1",
    "train.disable_tqdm=true",
    "evaluate.n=32",
)
SMALL_LOOP = (
    "rounds=2",
    "prompts.per_round=12",
    "train.max_steps=2",
    "train.per_device_train_batch_size=8",
    "train.logging_steps=1",
    "train.disable_tqdm=true",
    "evaluate.n=16",
)


@pytest.fixture(autouse=True)
def _shared_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    # The base model takes a minute to build: once per content, whichever test comes first.
    monkeypatch.setenv("ALIGN_CACHE", str(ROOT / ".pytest_cache" / "align"))


def test_every_yaml_is_seen() -> None:
    """A glob that finds too little would pass silently."""
    found = {
        path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert found == {path.relative_to(ROOT / "recipes").as_posix() for path in RECIPES}
    assert len(TRAINING) >= 9
    tiny = {path.parent.name for path in OURS if path.stem.endswith("tiny")}
    assert tiny == {path.parent.name for path in OURS}
    assert {path.parent.name for path in LOOPS if path.stem == "tiny"} == ON_POLICY


@pytest.mark.parametrize("path", OURS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_loads_and_is_written_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_any(path)
    written = tmp_path / "resolved.yaml"
    written.write_text(resolved_yaml(recipe))
    assert load_any(written) == recipe
    assert path.read_text().startswith("# "), (
        "a recipe opens with a sentence that says what it shows"
    )


@pytest.mark.e2e
@pytest.mark.parametrize("path", OFFLINE, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tiny_recipe_through_the_command(path: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    main(["train", str(path), *SMALL, "--run", str(run)])
    assert "sampled accuracy" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    for when in ("before", "after"):
        assert metrics[when]["sums/sampled_accuracy"]["n"] == 32
        assert metrics[when]["preference/margin"]["n"] == 8
    assert metrics["before"]["preference/margin"]["value"] == 0
    assert metrics["after"]["preference/margin"]["value"] != 0
    data = metrics["data"]
    assert data["read"] == data["kept"] + sum(data["dropped"].values())
    assert data["kept"] == data["train"] + data["held_out"]
    assert damage(run / "model") is None
    assert AutoModelForCausalLM.from_pretrained(run / "model")
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    assert (
        yaml.safe_load((run / "recipe.yaml").read_text())["objective"]["name"] == path.parent.name
    )
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (run / "model" / "README.md").read_text()
    assert path.parent.name in card.lower()
    assert "| sampled accuracy, % |" in card
    ledger = (run / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in ledger] == ["base", "pairs", "train"]

    # Running the same command again is resuming; a finished run has nothing to do.
    before = (run / "ledger.jsonl").read_bytes()
    main(["train", str(path), *SMALL, "--run", str(run)])
    assert (run / "ledger.jsonl").read_bytes() == before


@pytest.mark.e2e
@pytest.mark.parametrize("path", LOOPS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tiny_loop_through_the_command(path: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    main(["loop", str(path), *SMALL_LOOP, "--run", str(run)])
    assert "KL to the reference" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    world = yaml.safe_load(path.read_text())["evaluate"]["suite"][0]
    assert metrics["before"][f"{world}/kl_to_reference"]["value"] == 0
    assert metrics["after"][f"{world}/kl_to_reference"]["value"] != 0
    assert metrics["loop"]["rounds"] == 2
    assert 0 < metrics["loop"]["judge_calls"] <= 2 * 12 * (4 if world == "sums" else 6)
    history = json.loads((run / "history.json").read_text())
    assert [(row["round"], row["stage"]) for row in history] == [
        (number, stage) for number in (1, 2) for stage in ("generate", "judge", "select", "train")
    ]
    # The second round is sampled from the policy that the first one made.
    first, second = (row["policy"] for row in history if row["stage"] == "generate")
    assert first != second
    assert damage(run / "model") is None
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    card = (run / "model" / "README.md").read_text()
    objective = yaml.safe_load((run / "recipe.yaml").read_text())["objective"]["name"]
    assert objective in card.lower()

    # Running the same command again is resuming; a finished run has nothing to do.
    before = (run / "ledger.jsonl").read_bytes()
    main(["loop", str(path), *SMALL_LOOP, "--run", str(run)])
    assert (run / "ledger.jsonl").read_bytes() == before


@pytest.mark.e2e
@pytest.mark.parametrize("path", TINY_DATA, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tiny_data_recipe_through_the_command(path: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    main(["data", "build", str(path), "prompts.per_round=16", "--run", str(run)])
    said = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    rows = metrics["rows"]
    assert rows["read"] == rows["kept"] + sum(rows["dropped"].values())
    assert f"{rows['kept']} pairs of {rows['read']} candidates" in said
    pairs, report = read_pairs(str(run / "dataset"), policy=RowPolicy())
    assert (len(pairs), report.read) == (rows["kept"], rows["kept"])
    assert damage(run / "dataset") is None
    assert "Policy: `world:sums`" in (run / "dataset" / "README.md").read_text()


@pytest.mark.e2e
def test_tiny_evaluation_through_the_command(tmp_path: Path, capsys) -> None:
    path = ROOT / "recipes" / "evaluation" / "tiny.yaml"
    main(["eval", str(path), "evaluate.suite.0.n=32", "--run", str(tmp_path / "run")])
    assert "| sums v1 | world:sums |" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n"] == 32
    assert metrics["scores"]["tasks/sums/strict/value"] > 0.8


@pytest.mark.e2e
@pytest.mark.parametrize("path", PIPELINE_LOOPS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tiny_pipeline_loop_through_the_command(path: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    main(["loop", str(path), *SMALL_LOOP[1:], "--run", str(run)])
    assert "Before and after training" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["after"].keys() == metrics["before"].keys()
    history = json.loads((run / "history.json").read_text())
    assert all(row["kept"] > 0 for row in history if "kept" in row)
    assert history[-1]["steps"] == 2
    assert damage(run / "model") is None


LAUNCHES = {
    "full-1": ("single", 1, ()),
    "lora-2": ("cpu-2", 2, ("model.use_peft=true", "model.lora_target_modules=[q_proj, v_proj]")),
}


@pytest.mark.e2e
@pytest.mark.parametrize("launch", LAUNCHES)
def test_real_dialogues_under_accelerate_launch(
    launch: str, shared_data: Path, tmp_path: Path
) -> None:
    config, processes, changes = LAUNCHES[launch]
    run = tmp_path / "run"
    file = shared_data / "hh_rlhf" / "hh_rlhf_harmless-base_test.jsonl.gz"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml")),
        *("--main_process_port", "0"),
        *(str(ROOT / "scripts" / "train.py"), str(ROOT / "recipes" / "dpo" / "hh-tiny.yaml")),
        *(f"data.pairs={file}", "data.limit=120", "data.held_out=20", "train.max_steps=3"),
        *("train.save_steps=3", "train.disable_tqdm=true", *changes, "--run", str(run)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((run / "metrics.json").read_text())
    data = metrics["data"]
    assert data["read"] + data["notes"]["beyond_limit"] == 2312
    assert data["read"] == data["kept"] + sum(data["dropped"].values())
    assert (data["train"], data["held_out"]) == (100, 20)
    assert metrics["after"]["preference/margin"]["n"] == 20
    # accelerate starts one process and says nothing where it cannot start two.
    manifest = json.loads((run / "checkpoints" / "checkpoint-3" / "manifest.json").read_text())
    assert manifest["about"]["run"]["processes"] == processes
    weights = "adapter_model" if changes else "model"
    assert load_file(run / "model" / f"{weights}.safetensors")
