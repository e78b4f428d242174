"""Where rows come from: files, folders of them, saved datasets, the Hub.

Local files are read here, row by row, so that one broken line costs one row; only a Hub id asks
the network. What the rows mean is for `align.data.formats` to say.
"""

from __future__ import annotations

import csv
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi

from align.data.arrow_files import read_dataset, read_parquet
from align.data.csv_files import read_csv
from align.data.json_files import read_json, read_json_lines
from align.data.problems import RawRow
from align.errors import DataError, MachineError

READABLE = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")

SPLIT_NAMES = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})


def open_rows(path_or_id: str, split: str, revision: str | None) -> Iterator[RawRow]:
    """Every row of a source with its place.

    Args:
        path_or_id: as `align.data.pair_files.read_pairs` takes it.
        split: likewise.
        revision: likewise.

    Raises:
        DataError: there is no such source, or it cannot be read.
        MachineError: the Hub cannot be reached.
    """
    path = Path(path_or_id).expanduser()
    if path.exists():
        if revision is not None:
            raise DataError(
                f"data.revision is {revision!r}, but {path_or_id} is a local path, which has no "
                "revisions: remove data.revision."
            )
        return _open_folder(path, split) if path.is_dir() else _open_file(path, split)
    looks_local = path_or_id.startswith((".", "/", "~")) or _format_of(path) is not None
    name, _, tag = path_or_id.partition("@")
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(
            f"There is no file or folder {path_or_id} (looked from {Path.cwd()}). Check data.pairs."
        )
    if tag and revision is not None and tag != revision:
        raise DataError(
            f"data.pairs names revision {tag!r} and data.revision {revision!r}: keep one of them."
        )
    return _open_hub(name, split, revision or tag or None)


def _open_file(path: Path, split: str) -> Iterator[RawRow]:
    if split != "train":
        raise DataError(
            f"data.split is {split!r}, but {path} is a single file, which has no splits: remove "
            "data.split, or name the file of that split."
        )
    return _read_file(path)


def _open_folder(path: Path, split: str) -> Iterator[RawRow]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path, split)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and _format_of(file) is not None
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(
            f"{path} holds no saved dataset and no file that can be read ({', '.join(READABLE)}, "
            "each also with .gz). Check data.pairs."
        )
    words = {
        file: set(re.split(r"[^a-z0-9]+", str(file.relative_to(path)).lower())) for file in files
    }
    if any(found & (SPLIT_NAMES | {split}) for found in words.values()):
        files = [file for file in files if split in words[file]]
        if not files:
            listed = ", ".join(str(file.relative_to(path)) for file in list(words)[:8])
            raise DataError(
                f"No file in {path} is named for data.split {split!r}; found are {listed}. Choose "
                "one of these splits, or name one file in data.pairs."
            )
    elif split != "train":
        raise DataError(
            f"data.split is {split!r}, but no file name in {path} tells a split: remove "
            "data.split, or name one file in data.pairs."
        )
    return itertools.chain.from_iterable(_read_file(file) for file in files)


def _open_hub(name: str, split: str, revision: str | None) -> Iterator[RawRow]:
    try:
        # The commit, so that the provenance names what was read even when the branch moves on.
        commit = HfApi().dataset_info(name, revision=revision).sha or revision
    except Exception:
        # Offline with a warm cache is no error, and the HTTP library whose exceptions come through
        # here changes with the version of huggingface_hub. What is really wrong, loading will say.
        commit = revision
    try:
        dataset = datasets.load_dataset(name, split=split, revision=commit)
    except ConnectionError as error:
        raise MachineError(
            f"The Hub cannot be reached for {name} ({type(error).__name__}), it is not in the "
            f"local cache, and there is no local file of this name (looked from {Path.cwd()}). "
            "Check the network, or point data.pairs to a file."
        ) from error
    except (ValueError, OSError, DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"The Hub dataset {name} (split {split!r}, revision {revision or 'newest'}) cannot be "
            f"read: {first[:300]}. Check data.pairs, data.split and data.revision; there is no "
            "local file of this name either."
        ) from error
    return read_dataset(f"{name}@{commit or 'main'}", dataset)


def _read_saved(path: Path, split: str) -> Iterator[RawRow]:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} is no complete saved dataset ({type(error).__name__}): save it again with "
            "save_to_disk."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(
                f"{path} has no split {split!r}; found are {', '.join(map(str, saved))}. Set "
                "data.split."
            )
        saved = saved[split]
    elif split != "train":
        raise DataError(
            f"data.split is {split!r}, but {path} is a saved dataset without splits: remove "
            "data.split."
        )
    return _with_file_errors(path, read_dataset(str(path), saved))


def _read_file(path: Path) -> Iterator[RawRow]:
    form = _format_of(path)
    readers = {".parquet": read_parquet, ".csv": read_csv, ".json": read_json}
    if form is None:
        raise DataError(
            f"{path} is no kind of file that can be read: known are {', '.join(READABLE)}, each "
            "also with .gz."
        )
    return _with_file_errors(path, readers.get(form, read_json_lines)(path))


def _with_file_errors(path: Path, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """`rows`, with a damaged file told in one sentence."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except (EOFError, zlib.error, OSError, pa.ArrowInvalid, csv.Error) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read behind row {count}: {first[:200]}. The file is damaged or is "
            "not what its name says: fetch or write it again."
        ) from error


def _format_of(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in READABLE if name.endswith(suffix)), None)
