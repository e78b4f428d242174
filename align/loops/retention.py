"""Which old artefacts a loop removes, so that the policies of all rounds do not fill the disk.

What is small stays forever. What is bulky stays for the last rounds; of older ones the manifest
remains, with the digest of what was removed, so that a resumed loop still knows that the stage is
done.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from align.runs.manifest import publish


class Retention(BaseModel):
    """How long bulky artefacts are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rounds: int = Field(default=2, ge=1)
    """How many of the last rounds keep them. With 1, a policy that turns out damaged can only be
    made again from the start of the loop."""
    bulky: tuple[str, ...] = ("policy", "anchor")
    """Kinds of artefacts that are removed; those of all other kinds stay."""

    def kept_rounds(self, reads: Iterable[str]) -> int:
        """How many rounds are kept, never fewer than a chain that reads `reads` looks back."""
        looks_back = any(read.endswith("@previous_round") for read in reads)
        return max(self.rounds, 2 if looks_back else 1)


def remove_bulky(stage_folder: Path, bulky: Collection[str], about: dict[str, Any]) -> None:
    """Publishes a stage's folder again without its bulky artefacts.

    Args:
        stage_folder: published before.
        bulky: kinds to remove.
        about: what the slim folder's manifest carries.
    """
    partial = stage_folder.with_name(f".{stage_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in stage_folder.iterdir():
        if path.is_dir() and path.name not in bulky:
            shutil.copytree(path, partial / path.name)
    publish(partial, stage_folder, about)
