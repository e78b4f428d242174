import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align.diffusion.images import FittedImage
from align.diffusion.records import RecordReader
from align.diffusion.settings import DiffusionData
from align.errors import DataError


def png(colour: str, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, format="PNG")
    return stream.getvalue()


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reader(path: Path, *, rejected: bool = False, **more: Any) -> RecordReader:
    return RecordReader(
        DiffusionData(records=str(path), resolution=8, **more), with_rejected=rejected
    )


def corner(image: FittedImage) -> list[float]:
    return [round(value, 2) for value in image.pixels[:, 0, 0].tolist()]


RED, LIME, BLUE = [1, -1, -1], [-1, 1, -1], [-1, -1, 1]


def test_lines_with_paths_and_every_reason(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "no.png").write_bytes(b"no picture")
    file = lines(
        tmp_path / "rows.jsonl",
        [
            {"image": "red.png", "caption": "a red one"},
            {"image": "red.png"},
            {"image": "red.png", "caption": "  "},
            {"image": "red.png", "caption": 3},
            {"image": "no.png", "caption": "x"},
            {"image": "gone.png", "caption": "x"},
            {"image": 7, "caption": "x"},
            {"caption": "x"},
            {"image": "red.png", "caption": "another"},
        ],
    )
    found = reader(file)
    records = list(found)
    assert [record.caption for record in records] == ["a red one", "another"]
    assert corner(records[0].image) == RED
    assert records[0].rejected is None
    report = found.report
    assert (report.read, report.kept) == (9, 2)
    assert report.dropped == {"missing_field": 3, "wrong_type": 2, "unreadable": 2}
    assert [row.row for row in report.rows] == [2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(DataError, match="7 of 9"):
        report.check(0.05)


def test_limit_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    for name in ("a", "b"):
        lines(tmp_path / f"{name}.jsonl", [{"image": "red.png", "caption": name}] * 2)
    assert [record.caption for record in reader(tmp_path)] == ["a", "a", "b", "b"]
    assert [record.caption for record in reader(tmp_path, limit=3)] == ["a", "a", "b"]


def test_rejected_images(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "blue.png").write_bytes(png("blue"))
    rows = [
        {"image": "red.png", "caption": "a", "rejected_image": "blue.png"},
        {"image": "red.png", "caption": "b"},
    ]
    file = lines(tmp_path / "rows.jsonl", rows)
    found = reader(file, rejected=True)
    [record] = found
    assert corner(record.rejected) == BLUE
    assert found.report.dropped == {"missing_field": 1}
    # Who reads chosen images alone keeps both rows, and opens no other picture.
    assert [record.rejected for record in reader(file)] == [None, None]


def test_pickapic(tmp_path: Path) -> None:
    rows = [
        {"jpg_0": png("red"), "jpg_1": png("blue"), "label_0": label, "caption": str(label)}
        for label in (1.0, 0.0, 0.5, 0.7)
    ]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    found = reader(file, rejected=True)
    first, second = found
    assert (corner(first.image), corner(first.rejected)) == (RED, BLUE)
    assert (corner(second.image), corner(second.rejected)) == (BLUE, RED)
    assert found.report.dropped == {"tie": 1, "bad_score": 1}


def test_what_datasets_makes_of_an_image(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    rows = [{"image": {"bytes": png("lime"), "path": None}, "caption": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    [record] = reader(file)
    assert corner(record.image) == LIME


def test_fitting() -> None:
    # 40 wide, 20 high, left half red, right half blue: to 16 x 8, then the middle 8.
    image = Image.new("RGBA", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    fitted = FittedImage(image, 8)
    assert fitted.pixels.shape == (3, 8, 8)
    assert (fitted.original, fitted.corner) == ((20, 40), (0, 4))
    assert [round(v) for v in fitted.pixels[:, 4, 0].tolist()] == RED
    assert [round(v) for v in fitted.pixels[:, 4, 7].tolist()] == BLUE


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"image": "a", "caption": "b"}\n{nonsense\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        list(reader(broken))
    other = tmp_path / "rows.txt"
    other.write_text("x")
    with pytest.raises(DataError, match=r"neither a \.jsonl nor"):
        list(reader(other))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        list(reader(empty))
