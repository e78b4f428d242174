"""What a policy is asked to continue."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from align.data.images import ImageRef, without_no_images
from align.data.messages import Text
from align.data.records import Record, content_id


class Prompt(Record):
    """What a policy is asked to continue."""

    prompt: Text
    images: tuple[ImageRef, ...] | None = None
    group_id: str | None = None
    source: str
    row: int

    @property
    def id(self) -> str:
        """16 hex characters of the content, whatever file it came from."""
        return content_id(self.model_dump(exclude={"source", "row"}))

    @model_serializer(mode="wrap")
    def _without_no_images(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_no_images(write(self))
