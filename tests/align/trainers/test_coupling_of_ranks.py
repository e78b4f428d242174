"""Two ranks see one step: a coupled objective on two processes is that on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

# A step of 8 pairs and one of 5 in each of two epochs; of the 5, two ranks with batch 2 get 3 of
# the epoch's first pairs again, which must not enter a statistic.
ROWS, STEPS = 13, 4

SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.trainers import PreferenceConfig, PreferenceTrainer

folder, rows, out, batch = sys.argv[1:]
pairs = Dataset.from_list(json.loads(Path(rows).read_text()))
trainer = PreferenceTrainer(
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
    args=PreferenceConfig(
        output_dir=out,
        learning_rate=5e-3,
        max_steps=4,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=int(batch),
        gradient_accumulation_steps=2,
        token_budget=60,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_steps=4,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    ),
    train_dataset=pairs,
    eval_dataset=pairs.select(range(11)),
    processing_class=AutoTokenizer.from_pretrained(folder),
    objective={
        "name": "sum",
        "of": [
            {"objective": {"name": "aot_unpaired", "beta": 0.3}},
            {"objective": {"name": "bco", "beta": 0.3}},
            {"objective": {"name": "beta_dpo", "beta": 0.3, "keep": 0.6, "momentum": 0.5}},
            # Not coupled, but computed from whole vocabularies, of the policy and the reference.
            {"pair_weight": "wpo", "objective": {"name": "tdpo", "beta": 0.3}},
        ],
    },
)
trainer.train()
if trainer.accelerator.is_main_process:
    states = sorted(Path(out, "checkpoint-4").glob("align_state_*"))
    found = {
        "processes": trainer.accelerator.num_processes,
        "history": trainer.state.log_history,
        "carried": [json.loads(path.read_text())["carried"] for path in states],
    }
    Path(out, "found.json").write_text(json.dumps(found))
"""

PER_STEP = (
    "loss",
    "grad_norm",
    "rewards/margins",
    "aot_unpaired/loss",
    "bco/shift",
    "beta_dpo/beta",
    "beta_dpo/kept",
    "tdpo/loss",
    "tdpo/divergence/rejected",
    "weights/chosen",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_folder, make_rows, root) -> dict[int, dict]:
    """What one process with batch 4 and two with batch 2 found, each with a cache of its own."""
    base = tmp_path_factory.mktemp("coupled-ranks")
    script = base / "train_four_steps.py"
    script.write_text(SCRIPT)
    rows = base / "rows.json"
    rows.write_text(json.dumps(make_rows(ROWS)))
    found = {}
    for processes, batch in ((1, 4), (2, 2)):
        out = base / f"out-{processes}"
        out.mkdir()
        launch = [sys.executable]
        if processes > 1:
            # `accelerate launch --cpu --num_processes 2` starts one process without MPI.
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        done = subprocess.run(
            [*launch, str(script), tiny_folder, str(rows), str(out), str(batch)],
            env=os.environ
            | {
                "ALIGN_CACHE": str(base / f"cache-{processes}"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(root),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = json.loads(Path(out, "found.json").read_text())
        assert found[processes]["processes"] == processes
    return found


def test_every_step_is_the_same_the_ragged_ones_included(results) -> None:
    one, two = ([row for row in results[n]["history"] if "loss" in row] for n in (1, 2))
    assert len(one) == len(two) == STEPS
    for step, (wanted, found) in enumerate(zip(one, two, strict=True)):
        for name in PER_STEP:
            assert found[name] == pytest.approx(wanted[name], rel=1e-6, abs=1e-6), (step, name)
    # int(0.6 * 8) of 8 pairs, int(0.6 * 5) of 5
    kept = [row["beta_dpo/kept"] for row in one]
    assert kept == pytest.approx([4 / 8, 3 / 5] * 2)
    assert abs(one[-1]["rewards/margins"]) > 1e-3, "nothing was learned"


def test_an_evaluation_is_the_same(results) -> None:
    """11 rows over two ranks: one of them is repeated, and must not enter the statistic."""
    one, two = ([row for row in results[n]["history"] if "eval_loss" in row] for n in (1, 2))
    for name in PER_STEP:
        if name != "grad_norm":
            expected = pytest.approx(one[0][f"eval_{name}"], rel=1e-6, abs=1e-6)
            assert two[0][f"eval_{name}"] == expected, name


def test_every_rank_keeps_what_runs_on(results) -> None:
    (one,), two = results[1]["carried"], results[2]["carried"]
    assert len(two) == 2
    assert one["bco/count"] == 2 * 2 * ROWS, "both sides of every pair, in two epochs"
    assert two[0] == two[1] == pytest.approx(one, rel=1e-6, abs=1e-6)
