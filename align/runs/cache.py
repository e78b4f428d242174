"""Folders made once, kept by a hash of everything that determines them.

One process builds while others that want the same model wait; what stands in the cache was
published whole (`align.runs.manifest`) and is verified before it is handed out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from filelock import FileLock

from align.errors import MachineError
from align.reference import cache_root
from align.runs.manifest import damage, publish

logger = logging.getLogger(__name__)


def content_key(parts: Mapping[str, Any]) -> str:
    """16 hex characters of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def made_by(*files: str) -> dict[str, str]:
    """What a model built in code depends on besides its settings: source files and versions."""
    code = hashlib.sha256()
    for file in files:
        code.update(Path(file).read_bytes())
    return {
        "code": code.hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def cached_folder(shelf_name: str, parts: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` writes for `parts`, built at most once.

    Args:
        shelf_name: the folder below the cache's root, such as `worlds/sums`.
        parts: everything that determines the content, JSON-ready; kept in the folder's manifest.
        build: writes the content into the empty folder that it is given.

    Raises:
        MachineError: the cache cannot be written.
    """
    shelf = cache_root() / shelf_name
    key = content_key(parts)
    folder = shelf / key
    if folder.is_dir() and damage(folder) is None:
        return folder
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with FileLock(shelf / f"{key}.lock"):
            wrong = damage(folder)
            if wrong is None:
                return folder
            if folder.is_dir():
                logger.warning("%s is built again: %s.", folder, wrong)
            # Under the lock nobody else is writing this key: what lies here was torn by a crash.
            for torn in shelf.glob(f"{key}.partial-*"):
                shutil.rmtree(torn)
            partial = shelf / f"{key}.partial-{os.getpid()}"
            partial.mkdir()
            build(partial)
            publish(partial, folder, about=parts)
    except OSError as error:
        raise MachineError(
            f"The cache at {shelf} cannot be used ({error}). Free some disk "
            f"space there, or point the environment variable ALIGN_CACHE at a folder that can be "
            f"written."
        ) from error
    return folder
