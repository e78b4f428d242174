"""Two processes under DDP: one reference, one policy, different samples."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["networks", "adapters"])
def test_two_processes(root: Path, tmp_path: Path, kind: str) -> None:
    script = root / "tests/align/diffusion/two_processes.py"
    # `accelerate launch --cpu --num_processes 2` starts one process without MPI.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launch, str(script), kind, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["processes"] == 2
    assert one["weights"] == other["weights"]
    assert one["reference"] == other["reference"]
    assert one["log"] == other["log"]
    assert one["log"][0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    for mine, theirs in zip(one["pools"], other["pools"], strict=True):
        assert mine != theirs
        assert len(mine) == len(theirs) == 2
    assert (tmp_path / "run" / "newest" / "policy.safetensors").is_file()
    samples = tmp_path / "run" / "samples"
    assert len({file.read_bytes() for file in samples.iterdir()}) == 2
