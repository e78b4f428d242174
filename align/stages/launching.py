# pyright: basic
"""Starts a round's training in processes of its own, and hears what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.errors import (
    AlignError,
    DataError,
    Interrupted,
    MachineError,
    NumericalError,
    RecipeError,
)
from align.loops.signals import StopSignal

FAILED = "failed.json"


def write_failure(scratch: Path, error: AlignError) -> None:
    """Leaves a launched process's error to the one that launched it."""
    partial = scratch / f"{FAILED}.{os.getpid()}"
    partial.write_text(json.dumps({"exit_code": error.exit_code, "text": str(error)}))
    os.replace(partial, scratch / FAILED)


def run_launch(command: Sequence[str], scratch: Path, stop: StopSignal) -> None:
    """Runs a launch to its end; a signal is passed on, so that it saves a checkpoint.

    Raises:
        AlignError: what `write_failure` left; exit codes do not come through the launchers.
    """
    (scratch / FAILED).unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[:1], *_paths()])}
    # The processes end when this pipe closes: none may go on training once we were killed.
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as child:
        try:
            is_told = False
            while child.poll() is None:
                if stop.requested is not None and not is_told:
                    child.send_signal(signal.SIGTERM)
                    is_told = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.2)
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0:
        return
    failure = scratch / FAILED
    if failure.is_file():
        known = {
            error.exit_code: error
            for error in (RecipeError, DataError, MachineError, NumericalError, Interrupted)
        }
        told = json.loads(failure.read_text())
        raise known[told["exit_code"]](told["text"])
    stop.check("the launched training had ended")
    raise MachineError(
        f"The launched training ended with exit code {child.returncode}; what it said stands "
        "above. Run the same command again once that is mended."
    )


def launch_config(config: str) -> Mapping[str, Any]:
    """The keys of a config of `accelerate launch`.

    Raises:
        RecipeError: it is none.
    """
    try:
        node: Any = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        node = None
    if not isinstance(node, Mapping):
        raise RecipeError(
            f"each_round: the train stage is launched by {config}, which cannot be read as a "
            f"config of `accelerate launch` (looked from {Path.cwd()}). Name one such as "
            "recipes/accelerate/ddp.yaml."
        )
    return node


def free_port(config: str) -> list[str]:
    """Any free port on one machine, unless the config names one: the usual one may be taken."""
    node = launch_config(config)
    is_alone = int(node.get("num_machines") or 1) == 1
    return ["--main_process_port", "0"] if is_alone and "main_process_port" not in node else []


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
