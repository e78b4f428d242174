"""The built-in tasks, a YAML file each; `align_eval.task_files.gsm8k` is the file as a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    path = Path(__file__).parent / f"{name}.yaml"
    if not path.is_file():
        raise AttributeError(name)
    return path
