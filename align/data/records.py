"""What every row on disk is: frozen, of known fields, named by a hash of its content.

Importing this module loads pydantic and nothing heavier.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen row that accepts no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def content_id(*parts: object) -> str:
    """16 hex characters of the sha256 of `parts` in canonical JSON."""
    canonical = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]
