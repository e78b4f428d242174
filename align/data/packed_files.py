"""Files as they lie, or gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO


def bytes_of(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The content of `path`, unpacked where its name ends with .gz."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")
