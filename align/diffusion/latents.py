"""Records as the network sees them: latents and text embeddings, encoded once and kept.

Encoders are needed once, before training, and can then be let go. What is the same for all records
of one caption (its embedding) is kept once per caption. N records, U different captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from align.errors import DataError, NumericalError


class Encoder(Protocol):
    """The edge of a model where pixels and words become tensors."""

    def images(self, images: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, C, H, W] latents, and conditions that belong to an image (its size): [B, ...]."""
        ...

    def captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Name of the network's argument -> [B, ...]."""
        ...

    def no_caption(self) -> dict[str, Tensor]:
        """The same for guidance's other half, one row: [1, ...]."""
        ...


@dataclass(frozen=True, eq=False)
class Record:
    """One row: images as `Encoder.images` takes them.

    Attributes:
        image: the chosen one.
        caption: what it shows.
        rejected: a worse image for the same caption, where there is one.
    """

    image: Any
    caption: str
    rejected: Any | None = None


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """Records of one batch, on the CPU.

    Attributes:
        chosen: [B, C, H, W].
        rejected: the same, or None.
        given: conditions, [B, ...] each.
    """

    chosen: Tensor
    rejected: Tensor | None
    given: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LatentData:
    """All records, as arrays in memory or mapped from files.

    Attributes:
        chosen: [N, C, H, W].
        rejected: the same, or None.
        caption_of: [N] which caption a record has.
        captions: the U captions.
        by_caption: conditions, [U, ...] each.
        by_record: conditions, [N, ...] each.
        no_caption: conditions of no caption, [1, ...] each, by the names of `by_caption`.
        rows: [n] which of the N records these are; the arrays themselves stay where they are.
    """

    chosen: np.ndarray
    rejected: np.ndarray | None
    caption_of: np.ndarray
    captions: tuple[str, ...]
    by_caption: Mapping[str, np.ndarray]
    by_record: Mapping[str, np.ndarray]
    no_caption: Mapping[str, np.ndarray]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a latent."""
        return tuple(self.chosen.shape[1:])

    def batch(self, rows: Sequence[int]) -> LatentBatch:
        """The records of these numbers, in float32."""
        at = self.rows[list(rows)]
        return LatentBatch(
            _tensor(self.chosen, at),
            None if self.rejected is None else _tensor(self.rejected, at),
            self.conditions(rows),
        )

    def conditions(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the network is given beside the noised image, [B, ...] each."""
        at = self.rows[list(rows)]
        captions = self.caption_of[at]
        given = {name: _tensor(array, captions) for name, array in self.by_caption.items()}
        return given | {name: _tensor(array, at) for name, array in self.by_record.items()}

    def without_caption(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The same without the captions, for guidance."""
        at = self.rows[list(rows)]
        given = {name: _tensor(array, 0 * at) for name, array in self.no_caption.items()}
        return given | {name: _tensor(array, at) for name, array in self.by_record.items()}

    def caption(self, row: int) -> str:
        """A record's caption."""
        return self.captions[int(self.caption_of[self.rows[row]])]

    def split(self, held_out: int, seed: int) -> tuple[LatentData, LatentData | None]:
        """Records to train on, and `held_out` others drawn by `seed`; None where that is 0.

        Raises:
            DataError: nothing would be left.
        """
        if held_out >= len(self):
            raise DataError(
                f"data.held_out keeps {held_out} of {len(self)} records, so none is left to train "
                "on. Write a smaller number."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        if not held_out:
            return self, None
        train, kept = np.sort(order[held_out:]), np.sort(order[:held_out])
        return replace(self, rows=self.rows[train]), replace(self, rows=self.rows[kept])


def _tensor(array: np.ndarray, at: np.ndarray) -> Tensor:
    # Indexing by an array copies, also out of a file that is mapped.
    return torch.from_numpy(np.asarray(array[at])).float()


class _Growing:
    """An array on disk that grows by batches, of which only the length is not known before."""

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.path = folder / f"{name}.bin"
        self._dtype = np.dtype(dtype)
        self.path.unlink(missing_ok=True)
        self._shape: tuple[int, ...] | None = None
        self.rows = 0

    def add(self, tensor: Tensor) -> None:
        with np.errstate(over="ignore"):
            values = tensor.detach().float().cpu().numpy().astype(self._dtype)
        if not np.isfinite(values).all():
            raise NumericalError(
                f"An encoded image or caption is not finite in {self._dtype} ({self.path.stem}). "
                "Write `latents_dtype: float32` under data."
            )
        assert self._shape in (None, values.shape[1:])
        self._shape = values.shape[1:]
        with self.path.open("ab") as file:
            file.write(values.tobytes())
        self.rows += len(values)

    def about(self) -> dict[str, Any]:
        return {"shape": [self.rows, *(self._shape or ())], "dtype": self._dtype.name}


def encode(
    records: Iterable[Record], encoder: Encoder, folder: Path, *, batch: int, dtype: str
) -> None:
    """Writes the latents of all records into `folder`, for `load_latents`.

    Args:
        records: read one batch at a time.
        encoder: of the model.
        folder: exists and is empty.
        batch: records that are encoded together.
        dtype: float32 or float16.

    Raises:
        DataError: only some of the records have a rejected image.
    """
    arrays: dict[str, _Growing] = {}

    def add(name: str, tensor: Tensor) -> None:
        if name not in arrays:
            arrays[name] = _Growing(folder, name, dtype)
        arrays[name].add(tensor)

    numbers: dict[str, int] = {}
    caption_of: list[int] = []
    has_rejected: bool | None = None
    for part in _batches(records, batch):
        with torch.no_grad():
            chosen, of_record = encoder.images([record.image for record in part])
            add("chosen", chosen)
            for name, tensor in of_record.items():
                add(f"record.{name}", tensor)
            rejected = [record.rejected for record in part if record.rejected is not None]
            if has_rejected not in (None, bool(rejected)) or len(rejected) not in (0, len(part)):
                raise DataError(
                    "Some records have a rejected image and some have none. Diffusion-DPO needs "
                    "one in every record; SePPO and fine-tuning read none."
                )
            has_rejected = bool(rejected)
            if rejected:
                add("rejected", encoder.images(rejected)[0])
            new = [c for c in dict.fromkeys(r.caption for r in part) if c not in numbers]
            numbers |= {caption: len(numbers) + i for i, caption in enumerate(new)}
            for name, tensor in (encoder.captions(new) if new else {}).items():
                add(f"caption.{name}", tensor)
            caption_of += [numbers[record.caption] for record in part]
    for name, tensor in encoder.no_caption().items():
        add(f"nothing.{name}", tensor)
    about = {
        "arrays": {name: array.about() for name, array in arrays.items()},
        "captions": list(numbers),
        "caption_of": caption_of,
    }
    text = json.dumps(about, ensure_ascii=False)
    (folder / "latents.json").write_text(text, encoding="utf-8")


def load_latents(folder: Path) -> LatentData:
    """What `encode` wrote; the arrays are read from disk where and when they are needed."""
    about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    arrays = {
        name: np.memmap(
            folder / f"{name}.bin", dtype=said["dtype"], mode="r", shape=tuple(said["shape"])
        )
        for name, said in about["arrays"].items()
    }

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }

    return LatentData(
        chosen=arrays["chosen"],
        rejected=arrays.get("rejected"),
        caption_of=np.asarray(about["caption_of"], dtype=np.int64),
        captions=tuple(about["captions"]),
        by_caption=named("caption."),
        by_record=named("record."),
        no_caption=named("nothing."),
        rows=np.arange(len(about["caption_of"])),
    )


def _batches(records: Iterable[Record], size: int) -> Iterable[list[Record]]:
    part: list[Record] = []
    for record in records:
        part.append(record)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
