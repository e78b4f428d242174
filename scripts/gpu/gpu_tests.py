"""`pytest -m gpu`, counted."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from gpu_stand import SCRIPTS, Setting, needs


def measure(setting: Setting) -> dict[str, Any]:
    needs("pytest", "hypothesis")
    where = "tests/align/forest/test_cuda_kernels.py" if setting.tiny else "tests/align/forest"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, where], cwd=SCRIPTS.parent, capture_output=True, text=True, check=False
    )
    last = (run.stdout.strip().splitlines() or ["nothing was said"])[-1]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failures = [one for one in run.stdout.splitlines() if one.startswith(("FAILED", "ERROR"))]
    if counts.get("failed") or counts.get("error") or run.returncode not in (0, 5):
        raise RuntimeError(f"{last} {failures[:20]} {run.stderr[-300:]}")
    return {"counts": counts, "last": last}
