"""Folders that are either whole and verified, or not there.

A folder is written under another name, gets a manifest with the size and sha256 of every file
last, is flushed to disk, and appears under its own name by one rename. Whoever reads it verifies
it first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from align.progress import progress

MANIFEST = "manifest.json"
BLOCK = 2**20  # bytes that are hashed at a time


def file_digest(path: Path) -> str:
    """Sha256 of a file's bytes, in hex."""
    h = hashlib.sha256()
    block = memoryview(bytearray(BLOCK))
    with (
        progress(f"hash {path.name}", ceil(path.stat().st_size / BLOCK), "MiB") as advance,
        path.open("rb", buffering=0) as file,
    ):
        while read := file.readinto(block):
            h.update(block[:read])
            advance()
    return h.hexdigest()


def _flush(path: Path) -> None:
    # A rename is durable only when the file's bytes and the folder's entry both are.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(content: Mapping[str, Any]) -> str:
    # Without sorted keys: JSON keeps their order, but turns a number among them into a text.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def publish(partial: Path, final: Path, about: Mapping[str, Any]) -> None:
    """Seals `partial` with a manifest that carries `about`, and renames it to `final`.

    A folder already at `final` is put aside as `.<name>.replaced` and deleted once the new one
    stands. A crash between these two renames leaves nothing at `final`: readers see no folder,
    never a mixture, and the next `publish` clears what was put aside.
    """
    manifest = partial / MANIFEST
    inside = sorted(partial.rglob("*"))
    files = [p for p in inside if p.is_file() and p != manifest]
    listing = {
        p.relative_to(partial).as_posix(): {"bytes": p.stat().st_size, "sha256": file_digest(p)}
        for p in files
    }
    content = {"about": about, "files": listing}
    sealed = content | {"seal": _seal(content)}
    manifest.write_text(json.dumps(sealed, indent=1, allow_nan=False))
    for path in (*files, *(p for p in inside if p.is_dir()), manifest, partial):
        _flush(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that nobody who lists `checkpoint-*` takes it for one.
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def read_about(folder: Path) -> dict[str, Any]:
    """What `publish` was told about the folder."""
    return json.loads((folder / MANIFEST).read_text())["about"]


def damage(folder: Path) -> str | None:
    """The first thing that is wrong with a published folder, in words; None when it is whole."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}, so its writing never finished"
    try:
        content = json.loads(manifest.read_text())
        seal, listing = content.pop("seal"), content["files"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    if seal != _seal(content):
        return f"its {MANIFEST} is damaged"
    for name, expected in listing.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if file_digest(path) != expected["sha256"]:
            return f"the content of {name} has changed"
    return None
