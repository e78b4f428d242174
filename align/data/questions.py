"""What pipelines work on: a prompt, a question with its answer, or responses to compare."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from align.data.images import ImageRef, without_no_images
from align.data.messages import Text
from align.data.records import Record, content_id


class Unit(Record):
    """What a pipeline works on.

    Attributes:
        prompt: what is asked.
        images: what it shows.
        group_id: rows of one question share it.
        source: the file, or hub id@revision.
        row: 1-based number of the row in `source`.
    """

    prompt: Text
    images: tuple[ImageRef, ...] | None = None
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)

    @model_serializer(mode="wrap")
    def _without_no_images(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_no_images(write(self))

    @property
    def id(self) -> str:
        """16 hex characters of the content, whatever file it came from."""
        return content_id(self.model_dump(mode="json", exclude={"source", "row"}))


class Question(Unit):
    """A prompt with, where it is known, its answer.

    Attributes:
        answer: the final answer that a verifier compares with.
        solution: a whole reference solution.
    """

    answer: str | None = None
    solution: str | None = None


class Candidates(Unit):
    """A prompt with responses that are to be compared.

    Attributes:
        responses: two or more, all different.
        solution: a ground-truth response, where there is one.
        policy: identity of who wrote the responses.
    """

    responses: tuple[str, ...]
    solution: str | None = None
    policy: str
