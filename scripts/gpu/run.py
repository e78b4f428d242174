"""The GPU suite, in three calls: parts one after the other, each on its own, as JSON and tables.

python scripts/gpu/run.py --call 1|2|3 ... [--device cuda|cpu] [--tiny] [--only PART ...]
                          [--out DIR]

On a GPU each part is a process with a time limit, and what one does wrong does not reach the next.
--tiny runs them in this process. Writes DIR/call-N.json; exits with 1 where a part failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

# Part -> seconds it may take; a call fits into ten minutes with the machine's start.
CALLS: dict[int, dict[str, int]] = {
    1: {
        "environment": 45,
        "kernels": 110,
        "tests": 230,
        "objectives": 50,
        "resuming": 90,
        "gap": 40,
    },
    2: {"attention": 130, "passes": 170, "throughput": 250},
    3: {"learning": 190, "movement": 80, "sharding": 70, "budget": 110},
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--call", type=int, choices=CALLS, nargs="+", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.part is not None:
        write(asked.out / f"{asked.part}.json", in_this_process(asked.part, asked))
        return 0
    # A list, so that a part that fails does not keep the later calls from being made.
    return max([one_call(call, asked) for call in asked.call])


def one_call(call: int, asked: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []
    for part, limit in CALLS[call].items():
        if asked.only is None or part in asked.only:
            run = in_this_process if asked.tiny else in_a_process
            noted(part, asked).unlink(missing_ok=True)
            found.append(run(part, asked, limit))
            noted(part, asked).unlink(missing_ok=True)
            print(line(found[-1]), flush=True)
            write(asked.out / f"call-{call}.json", found)
    return int(any(row["status"] in ("failed", "timed out") for row in found))


def in_this_process(part: str, asked: argparse.Namespace, limit: int = 0) -> dict[str, Any]:
    began = time.monotonic()
    row: dict[str, Any] = {"part": part}
    try:
        # The first thing that can fail is an import: a package that is too old, or not there.
        from gpu_stand import Setting, Skipped, text_of
    except Exception as error:
        return row | {"status": "failed", "why": repr(error)[:400], "seconds": 0.0, "found": {}}
    try:
        with tempfile.TemporaryDirectory() as work:
            os.environ["ALIGN_CACHE"] = f"{work}/cache"
            setting = Setting(asked.device, asked.tiny, Path(work), notes=noted(part, asked))
            row |= {
                "status": "ok",
                "found": importlib.import_module(f"gpu_{part}").measure(setting),
            }
    except Skipped as why:
        row |= {"status": "skipped", "why": str(why), "found": {}}
    except Exception as error:
        row |= {"status": "failed", "why": text_of(error), "found": {}}
    return row | {"seconds": time.monotonic() - began}


def in_a_process(part: str, asked: argparse.Namespace, limit: int) -> dict[str, Any]:
    began = time.monotonic()
    command = [sys.executable, str(HERE / "run.py"), "--call", "1", "--part", part]
    command += ["--device", asked.device, "--out", str(asked.out), *["--tiny"] * asked.tiny]
    row: dict[str, Any] = {"part": part}
    written = asked.out / f"{part}.json"
    written.unlink(missing_ok=True)
    with (asked.out / f"{part}.log").open("w+") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            child.wait(timeout=limit)
            row |= {"status": "failed", "why": f"ended with {child.returncode}"}
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            row |= {"status": "timed out", "why": f"after {limit} s"}
        log.seek(0)
        tail = log.read()[-2000:]
    if written.exists():
        row = json.loads(written.read_text())
        written.unlink()
    if row["status"] in ("failed", "timed out"):
        row["log"] = tail
        if noted(part, asked).exists():
            rows = noted(part, asked).read_text().splitlines()
            row["found"] = {"so_far": [json.loads(one) for one in rows]}
    return {"found": {}} | row | {"seconds": time.monotonic() - began}


def noted(part: str, asked: argparse.Namespace) -> Path:
    return asked.out / f"{part}.jsonl"


def line(row: dict[str, Any]) -> str:
    shown = [f"[{row['status']}] {row['part']} ({row['seconds']:.0f} s) {row.get('why', '')}"]
    for name, value in row["found"].items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(key for one in value for key in one))
            shown.append(f"  {name}: " + " | ".join(columns))
            shown += ["    " + " | ".join(cell(one.get(key)) for key in columns) for one in value]
        else:
            shown.append(f"  {name}: {cell(value)}")
    return "\n".join(shown)


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
