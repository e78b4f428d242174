"""Two ranks with batch b are one process with batch 2b: losses, evaluations and role scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

# Three steps of 8 pairs, and a last one with the 5 that are left.
ROWS, WHOLE_STEPS = 29, 3

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
# float64, because Adam's first steps make much of a gradient's last bits.
trainer = PreferenceTrainer(
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
    args=PreferenceConfig(
        output_dir=out,
        learning_rate=5e-3,
        max_steps=4,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=int(batch),
        gradient_accumulation_steps=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_steps=2,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    ),
    train_dataset=pairs,
    eval_dataset=pairs.select(range(13)),
    processing_class=AutoTokenizer.from_pretrained(folder),
    objective={"name": "dpo", "beta": 0.3},
)
trainer.train()
columns = ["reference_chosen_logps", "reference_rejected_logps"]
scores = trainer.train_dataset.select_columns(columns)
if trainer.accelerator.is_main_process:
    found = {
        "processes": trainer.accelerator.num_processes,
        "history": trainer.state.log_history,
        "probe": trainer.probe,
        "scores": scores[:],
        "saved": sorted(path.name for path in Path(out, "checkpoint-2").glob("align_state_*")),
    }
    Path(out, "found.json").write_text(json.dumps(found))
"""

PER_STEP = (
    "loss",
    "grad_norm",
    "num_tokens",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "entropy",
)
PER_EVALUATION = (
    "eval_loss",
    "eval_rewards/margins",
    "eval_rewards/accuracies",
    "eval_logps/chosen",
    "eval_logps/rejected",
    "eval_entropy",
    "eval_mean_token_accuracy",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_folder, make_rows, root) -> dict[int, dict]:
    """What one process with batch 4 and two with batch 2 found, each with a cache of its own."""
    base = tmp_path_factory.mktemp("ranks")
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


def rows_with(history: list[dict], name: str) -> list[dict]:
    return [row for row in history if name in row]


def test_every_logged_step_is_the_same(results) -> None:
    one, two = (rows_with(results[n]["history"], "loss") for n in (1, 2))
    assert len(one) == len(two) == WHOLE_STEPS + 1
    for step in range(WHOLE_STEPS):
        for name in PER_STEP:
            expected = pytest.approx(one[step][name], rel=1e-6, abs=1e-6)
            assert two[step][name] == expected, (step, name)
    assert abs(one[WHOLE_STEPS - 1]["rewards/margins"]) > 1e-3, "nothing was learned"


def test_the_ragged_last_step_of_an_epoch_is_the_same(results) -> None:
    """5 pairs on one process; two ranks with batch 2 get 3 of the epoch's first pairs again.

    accelerate repeats them to give every rank a full batch; they must not be trained on twice.
    """
    one, two = (rows_with(results[n]["history"], "loss") for n in (1, 2))
    for name in PER_STEP:
        assert two[-1][name] == pytest.approx(one[-1][name], rel=1e-6, abs=1e-6), name


def test_13_rows_are_evaluated_once_each(results) -> None:
    """4 does not divide 13: the sampler repeats 3 rows for two ranks, which must not count."""
    one, two = (rows_with(results[n]["history"], "eval_loss") for n in (1, 2))
    assert one[0]["step"] == two[0]["step"] == WHOLE_STEPS
    for name in PER_EVALUATION:
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-6, abs=1e-6), name


def test_scores_of_two_ranks_are_those_of_one(results) -> None:
    one, two = (results[n]["scores"] for n in (1, 2))
    for side in ("reference_chosen_logps", "reference_rejected_logps"):
        assert len(one[side]) == len(two[side]) == ROWS
        for row, (expected, found) in enumerate(zip(one[side], two[side], strict=True)):
            assert found == pytest.approx(expected, abs=1e-5), (side, row)
    assert results[2]["probe"]["margin"] == 0.0


def test_each_rank_keeps_its_own_sums_in_a_checkpoint(results) -> None:
    assert results[1]["saved"] == ["align_state_0.json"]
    assert results[2]["saved"] == ["align_state_0.json", "align_state_1.json"]
