from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.diffusion.latents import Record, encode, load_latents
from align.errors import DataError, NumericalError


class Counting:
    """An encoder whose tensors tell what they were made of."""

    def __init__(self, scale: float = 1.0) -> None:
        self.asked: list[str] = []
        self.scale = scale

    def images(self, images: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        values = self.scale * torch.tensor([float(image) for image in images])
        return values[:, None, None, None].expand(-1, 1, 2, 2), {"size": values[:, None] + 0.5}

    def captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        self.asked += captions
        return {"words": torch.tensor([[float(len(caption))] for caption in captions])}

    def no_caption(self) -> dict[str, Tensor]:
        return {"words": torch.tensor([[0.0]])}


RECORDS = [Record(i, "ab" if i % 2 else "abc", -i) for i in range(7)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_record_comes_back(tmp_path: Path, dtype: str) -> None:
    encoder = Counting()
    encode(iter(RECORDS), encoder, tmp_path, batch=3, dtype=dtype)
    assert encoder.asked == ["abc", "ab"]  # each caption once
    data = load_latents(tmp_path)
    assert (len(data), data.shape) == (7, (1, 2, 2))
    batch = data.batch([5, 0, 2])
    assert batch.chosen[:, 0, 0, 0].tolist() == [5, 0, 2]
    assert batch.rejected is not None
    assert batch.rejected[:, 0, 0, 0].tolist() == [-5, 0, -2]
    assert batch.given["words"].tolist() == [[2], [3], [3]]
    assert batch.given["size"].tolist() == [[5.5], [0.5], [2.5]]
    # Guidance's other half: no words, the image's own size.
    without = data.without_caption([5, 0])
    assert without["words"].tolist() == [[0], [0]]
    assert without["size"].tolist() == [[5.5], [0.5]]
    assert batch.chosen.dtype == torch.float32


def test_split(tmp_path: Path) -> None:
    encode(RECORDS, Counting(), tmp_path, batch=4, dtype="float32")
    data = load_latents(tmp_path)
    train, held_out = data.split(2, seed=0)
    assert held_out is not None
    both = [*train.batch(range(5)).chosen[:, 0, 0, 0], *held_out.batch([0, 1]).chosen[:, 0, 0, 0]]
    assert sorted(int(value) for value in both) == list(range(7))
    assert train.caption(0) == RECORDS[int(train.batch([0]).chosen[0, 0, 0, 0])].caption
    number = int(held_out.batch([1]).chosen[0, 0, 0, 0])
    assert held_out.conditions([1])["size"].item() == number + 0.5
    for part in (train, held_out):
        lengths = [float(len(part.caption(row))) for row in range(len(part))]
        assert part.conditions(range(len(part)))["words"].flatten().tolist() == lengths
    assert data.split(0, seed=0) == (data, None)
    with pytest.raises(DataError, match="held_out keeps 7 of 7"):
        data.split(7, seed=0)


def test_records_without_rejected_images(tmp_path: Path) -> None:
    encode([Record(1, "a"), Record(2, "b")], Counting(), tmp_path, batch=1, dtype="float32")
    assert load_latents(tmp_path).batch([1]).rejected is None


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mixture_is_refused(tmp_path: Path, batch: int) -> None:
    with pytest.raises(DataError, match="some have none"):
        encode(
            [Record(1, "a"), Record(2, "b", 3)], Counting(), tmp_path, batch=batch, dtype="float32"
        )


def test_what_does_not_fit_the_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="latents_dtype: float32"):
        encode(RECORDS, Counting(1e5), tmp_path, batch=4, dtype="float16")
