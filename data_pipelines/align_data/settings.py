"""What the settings of every pipeline can do, whatever the stage that they stand in."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from align.data.records import content_id
from align.node import Node


class PipelineSettings(Node):
    """What a pipeline's rows depend on, besides who writes, judges and verifies."""

    chunk: int = Field(default=64, ge=1)
    """Units that are worked on together, and resumed together."""

    def hashed(self) -> dict[str, Any]:
        """What `config_hash` covers, JSON-ready.

        Draws are keyed by it and uids contain it, so what stands here stays: another key, or
        another value, makes other rows of the same recipe.
        """
        raise NotImplementedError

    @property
    def config_hash(self) -> str:
        """16 hex digits of these settings."""
        return content_id(self.hashed())

    def fields_of(self, settings: type[Node]) -> dict[str, Any]:
        """The values of the keys that `settings` has, JSON-ready; a stage has more."""
        return self.model_dump(mode="json", include=set(settings.model_fields))
