"""Pictures as rows name them: a file, or the file itself as a data URI.

Importing this module loads neither torch nor Pillow. Where a row's file is read, a relative place
counts from the folder of that file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import Field

from align.data.problems import RowProblem
from align.data.records import Record

# A picture by its place: a file, or the file itself as a data URI (`data:image/png;base64,...`).
ImageRef = str

DATA_URI = "data:"


class Degraded(Record):
    """What becomes of a row's own pictures on the rejected side, in place of other pictures.

    Yang et al. 2025, OPA-DPO (arXiv 2501.09695), and the program of its authors.

    Attributes:
        method: "pixels" sets random pixels, the same in all channels, to the picture's mean colour.
        share: of the pixels; floor(share * height * width) of them.
        seed: of their choice; the policy and every role see the same picture.
    """

    method: Literal["pixels"] = "pixels"
    share: float = Field(default=0.3, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)


def without_no_images(written: dict[str, Any]) -> dict[str, Any]:
    """A row as it was written before rows could have pictures, where it has none."""
    if written.get("images", ...) is None:
        del written["images"]
    return written


def refs_of(value: object, at: str, source: str) -> tuple[ImageRef, ...] | None:
    """The pictures in a row's column: one or a list, in any of the usual spellings.

    Args:
        value: a place or data URI, `{"bytes": ..., "path": ...}` as data sets store pictures, a
            Pillow image, or a list of these; None or an empty list where there is none.
        at: the column.
        source: the file that the row stands in, or where else it is from.

    Raises:
        RowProblem: something that names no picture.
    """
    if value is None:
        return None
    many: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    found = tuple(_ref(one, f"{at}[{i}]", source) for i, one in enumerate(many))
    return found or None


def _ref(value: object, at: str, source: str) -> ImageRef:
    if isinstance(value, Mapping):
        content, place = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return data_uri(content)
        value = place
    if hasattr(value, "save") and hasattr(value, "convert"):
        image: Any = value
        return png(image)
    if not isinstance(value, str) or not value:
        kind = type(value).__name__
        raise RowProblem("wrong_type", at, f"{kind} instead of a picture's place or content")
    if value.startswith(DATA_URI):
        return value
    if "://" in value:
        raise RowProblem("unsupported_content", at, "an address; fetch the picture into a file")
    beside = Path(source).expanduser().parent
    place = Path(value).expanduser()
    return str(place if place.is_absolute() or not Path(source).is_file() else beside / place)


def data_uri(content: bytes) -> ImageRef:
    """A picture file's content as a reference; readers recognise the format by the content."""
    return f"{DATA_URI}image;base64,{base64.b64encode(content).decode('ascii')}"


def png(image: Image.Image) -> ImageRef:
    """A Pillow image as a reference, without loss."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return data_uri(buffer.getvalue())


def content_of(ref: ImageRef) -> bytes:
    """The picture file that `ref` names.

    Raises:
        RowProblem: there is none that can be read.
    """
    if ref.startswith(DATA_URI):
        _, _, body = ref.partition("base64,")
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RowProblem("unreadable", "images", "a data URI that is no base64") from error
    try:
        return Path(ref).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RowProblem("unreadable", "images", f"{ref}: {reason}") from error


def open_image(ref: ImageRef) -> Image.Image:
    """The picture in RGB.

    Raises:
        RowProblem: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(content_of(ref))) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise RowProblem("unreadable", "images", f"{_named(ref)} is no picture") from error


def content_digest(ref: ImageRef) -> str:
    """Sha256 of the picture file, in hex.

    Raises:
        RowProblem: it cannot be read.
    """
    return hashlib.sha256(content_of(ref)).hexdigest()


def _named(ref: ImageRef) -> str:
    return "a data URI" if ref.startswith(DATA_URI) else ref
