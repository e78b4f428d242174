"""An evaluation under a token budget whose ranks need different numbers of passes."""

import json
import os
import runpy
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

SCRIPT = """
import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.distributed import distributed_c10d
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.stages.processes import this_process
from align.trainers import PreferenceConfig, PreferenceTrainer

folder, rows, out, batch = sys.argv[1:]
state = this_process(True, 4321)
rows = json.loads(Path(rows).read_text())
passes = []


def of_pairs(found):
    margins = found.predictions[:, 0] - found.predictions[:, 1]
    summary = {"median": float(np.median(margins)), "most": float(margins.max())}
    return {"pairs": len(margins), **summary}


trainer = PreferenceTrainer(
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
    args=PreferenceConfig(
        output_dir=out,
        learning_rate=5e-3,
        max_steps=2,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=int(batch),
        token_budget=64,
        logging_steps=1,
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        ddp_timeout=4321,
    ),
    train_dataset=Dataset.from_list(rows),
    eval_dataset={
        "all": Dataset.from_list(rows),
        "few": Dataset.from_list(rows[:3]),
    },
    processing_class=AutoTokenizer.from_pretrained(folder),
    objective={"name": "dpo", "beta": 0.3},
    compute_metrics=of_pairs,
)
trainer.train()
loss = trainer.compute_loss
trainer.compute_loss = lambda *a, **k: passes.append(1) or loss(*a, **k)
batches = trainer.prediction_step
needed = []
trainer.prediction_step = lambda model, inputs, *a, **k: (
    needed.append(len(inputs["parts"])) or batches(model, inputs, *a, **k)
)
found = {"metrics": trainer.evaluate(), "passes": len(passes), "needed": needed}
found["history"] = trainer.state.log_history
if state.num_processes > 1:
    backend = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    found["timeout"] = backend.options._timeout.total_seconds()
Path(out, f"found-{state.process_index}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_folder, make_rows, root) -> dict[int, list[dict]]:
    """What one process with batch 4 and each of two with batch 2 found.

    Every other pair is eight times as long, so that one of the two ranks has the long ones.
    """
    base = tmp_path_factory.mktemp("ranks")
    script = base / "evaluate.py"
    script.write_text(SCRIPT)
    rows = make_rows(13)
    for row in rows[2::4] + rows[3::4]:
        for side in ("chosen_ids", "rejected_ids"):
            row[side] = row[side][:-1] * 4 + row[side][-1:]
    (base / "rows.json").write_text(json.dumps(rows))
    given = [str(script), tiny_folder, str(base / "rows.json")]
    for processes in (1, 2):
        (base / f"out-{processes}").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(base / "cache-1"))
        patch.setattr(sys, "argv", [*given, str(base / "out-1"), "4"])
        runpy.run_path(str(script))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, *given, str(base / "out-2"), "2"],
        env=os.environ
        | {
            "ALIGN_CACHE": str(base / "cache-2"),
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
    return {
        processes: [
            json.loads((base / f"out-{processes}" / f"found-{rank}.json").read_text())
            for rank in range(processes)
        ]
        for processes in (1, 2)
    }


def test_the_ranks_need_different_numbers_of_passes_and_make_as_many(results) -> None:
    first, second = results[2]
    assert first["needed"] != second["needed"]
    assert first["passes"] == second["passes"]
    most = [max(both) for both in zip(first["needed"], second["needed"], strict=True)]
    assert first["passes"] == sum(most)


def test_each_row_counts_once_whatever_the_ranks(results) -> None:
    """Two data sets under their names; 13 rows and 3 do not fill the batches of two ranks."""
    (one,), both = results[1], results[2]
    names = [
        f"eval_{part}_{metric}"
        for part in ("all", "few")
        for metric in (
            *("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "entropy"),
            *("pairs", "median", "most"),
        )
    ]
    assert one["metrics"]["eval_all_pairs"] == 13
    assert one["metrics"]["eval_few_pairs"] == 3
    for rank in both:
        for name in names:
            expected = pytest.approx(one["metrics"][name], rel=1e-6, abs=1e-6)
            assert rank["metrics"][name] == expected, name
    assert abs(one["metrics"]["eval_all_rewards/margins"]) > 1e-3


def test_the_group_waits_as_long_as_the_recipe_says(results) -> None:
    """It is made by the first who asks, long before the trainer reads `ddp_timeout`."""
    assert [rank["timeout"] for rank in results[2]] == [4321.0, 4321.0]
