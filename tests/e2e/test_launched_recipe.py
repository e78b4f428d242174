"""A recipe on real dialogues, started as `accelerate launch` starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
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
