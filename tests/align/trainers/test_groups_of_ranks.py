"""Two ranks see one step of groups: losses, gradients and the KL term are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.align.trainers.groups_in_code import make_groups
from tests.align.trainers.test_kto import some_rows

pytestmark = pytest.mark.e2e

# Steps of 8 rows and one of 5: of these, two ranks with batch 2 get 3 of the epoch's first rows
# again, which must count for nothing.
ROWS, STEPS = 13, 4

SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import align.trainers.mismatched as mismatched
from align.objectives import DAPO
from align.trainers import GroupConfig, GroupTrainer, KTOConfig, KTOTrainer
from tests.align.trainers.groups_in_code import Listwise, settings

folder, rows, out, batch = sys.argv[1:]
# The leaves of blocks of four rows, as a batch of one process has them.
original = mismatched.mismatched_ids
mismatched.mismatched_ids = lambda prompts, completions, block, limit: original(
    prompts, completions, 4, limit
)
roles = {"roles": {"reference": "start", "previous": "start"}}
found = {}


def metrics(given):
    # Depends on the order.
    place = torch.arange(1, len(given.predictions) + 1, dtype=torch.float64).numpy()
    sums = {"mine": float(place @ given.predictions), "truth": float(place @ given.label_ids)}
    return sums | {"n": len(place)}


for name, table in json.loads(Path(rows).read_text()).items():
    kind, config, own = {
        "kto": (KTOTrainer, KTOConfig, {}),
        "groups": (GroupTrainer, GroupConfig, {"objective": Listwise()}),
        "dapo": (GroupTrainer, GroupConfig, {"objective": DAPO(kl_beta=0.1), **roles}),
    }[name]
    data = Dataset.from_list(table)
    trainer = kind(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
        args=config(
            **settings(
                str(Path(out, name)),
                max_steps=4,
                per_device_train_batch_size=int(batch),
                per_device_eval_batch_size=int(batch),
                gradient_accumulation_steps=2,
                token_budget=60,
                eval_strategy="steps",
                eval_steps=3,
                dataloader_pin_memory=False,
            )
        ),
        train_dataset=data,
        eval_dataset=data.select(range(11)),
        compute_metrics=metrics,
        processing_class=AutoTokenizer.from_pretrained(folder),
        **own,
    )
    trainer.train()
    found[name] = trainer.state.log_history
    found["processes"] = trainer.accelerator.num_processes
if trainer.accelerator.is_main_process:
    Path(out, "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_folder, root) -> dict[int, dict]:
    """What one process with batch 4 and two with batch 2 found, each with a cache of its own."""
    base = tmp_path_factory.mktemp("groups-of-ranks")
    script = base / "train_four_steps.py"
    script.write_text(SCRIPT)
    rows = base / "rows.json"
    groups = make_groups(ROWS).to_list()
    rows.write_text(
        json.dumps({"kto": some_rows(ROWS).to_list(), "groups": groups, "dapo": groups})
    )
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


@pytest.mark.parametrize("name", ["kto", "groups", "dapo"])
def test_every_step_is_the_same_the_ragged_ones_included(results, name) -> None:
    one, two = ([row for row in results[n][name] if "loss" in row] for n in (1, 2))
    assert len(one) == len(two) == STEPS
    for step, (wanted, found) in enumerate(zip(one, two, strict=True)):
        for key in ("loss", "grad_norm", "rewards/chosen", "logps/chosen", "kl"):
            if key in wanted or key != "kl":
                assert found[key] == pytest.approx(wanted[key], rel=1e-6, abs=1e-6), (step, key)
    assert len({row["loss"] for row in one}) == STEPS, "nothing was learned"
    assert name != "kto" or any(row["kl"] > 1e-3 for row in one)


@pytest.mark.parametrize("name", ["kto", "groups", "dapo"])
def test_an_evaluation_is_the_same(results, name) -> None:
    """11 rows over two ranks: one of them is repeated, and must not enter a mean."""
    one, two = ([row for row in results[n][name] if "eval_loss" in row] for n in (1, 2))
    for key in ("loss", "rewards/chosen", "kl"):
        if key != "kl" or name == "kto":
            expected = pytest.approx(one[0][f"eval_{key}"], rel=1e-6, abs=1e-6)
            assert two[0][f"eval_{key}"] == expected, key
    # What `compute_metrics` was given, each completion once and in the rows' order.
    for key in ("mine", "truth", "n"):
        expected = pytest.approx(one[0][f"eval_{key}"], rel=1e-6, abs=1e-6)
        assert two[0][f"eval_{key}"] == expected, key
    assert abs(one[0]["eval_mine"]) > 1e-3
