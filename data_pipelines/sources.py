"""Where preference rows come from: files, folders of them, saved datasets, the Hub.

Local files are read here, row by row, so that one broken line costs one row; only a Hub id asks
the network. What the rows mean is `align.row_formats`'s.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError, MachineError
from align.records import PreferencePair, RowPolicy, RowProblem, RowReport
from align.row_formats import (
    ENDS,
    SCORES,
    TOKEN_IDS,
    TOKEN_WEIGHTS,
    Format,
    RawRow,
    pairs_from_rows,
)

READABLE = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
SPLIT_NAMES = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})


def read_pairs(
    path_or_id: str,
    *,
    split: str = "train",
    revision: str | None = None,
    format: Format = "auto",  # noqa: A002 - the recipe's own word
    policy: RowPolicy,
) -> tuple[list[PreferencePair], RowReport]:
    """All pairs of a source that can be used, in order, and the report on the others.

    Args:
        path_or_id: a JSON, JSON Lines, Parquet or CSV file (also gzipped), a folder of such files
            or of a saved dataset, or a Hub id, optionally id@revision.
        split: of a Hub dataset, of a saved dataset with splits, or of a folder whose file names
            say train, test and so on. A single file is its own split.
        revision: branch, tag or commit of a Hub dataset.
        format: how to read the columns; "auto" decides by the first rows.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: no such source, columns of no known format, more rows dropped than
            `policy.max_dropped`, or none left.
        MachineError: the Hub cannot be reached.
    """
    rows = open_rows(path_or_id, split, revision)
    return pairs_from_rows(rows, source=path_or_id, format=format, policy=policy)


def open_rows(path_or_id: str, split: str, revision: str | None) -> Iterator[RawRow]:
    """Every row of a source with its place, as `read_pairs` takes it.

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


def _format_of(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in READABLE if name.endswith(suffix)), None)


def _open_file(path: Path, split: str) -> Iterator[RawRow]:
    if split != "train":
        raise DataError(
            f"data.split is {split!r}, but {path} is a single file, which has no splits: remove "
            "data.split, or name the file of that split."
        )
    return _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow]:
    form = _format_of(path)
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_json}
    if form is None:
        raise DataError(
            f"{path} is no kind of file that can be read: known are {', '.join(READABLE)}, each "
            "also with .gz."
        )
    return _with_file_errors(path, readers.get(form, _read_json_lines)(path))


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


def _bytes_of(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


class _DoubledKeyError(ValueError):
    pass


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        raise _DoubledKeyError
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _row_of(value: object) -> Mapping[str, Any] | RowProblem:
    if isinstance(value, dict):
        return value
    return RowProblem("wrong_type", "row", f"{type(value).__name__} instead of an object")


def _parse_line(line: bytes) -> Mapping[str, Any] | RowProblem:
    try:
        return _row_of(_DECODER.decode(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return RowProblem("unreadable", "line", f"byte {error.start + 1} is no UTF-8")
    except json.JSONDecodeError as error:
        return RowProblem("unreadable", "line", f"{error.msg} at character {error.pos + 1}")
    except _DoubledKeyError:
        return RowProblem("unreadable", "line", "a key is given twice")
    except (RecursionError, ValueError) as error:
        # ValueError: an integer of more digits than Python converts.
        return RowProblem("unreadable", "line", type(error).__name__)


def _read_json_lines(path: Path) -> Iterator[RawRow]:
    """One object per line. The row number is the line number; blank lines are no rows."""
    with _bytes_of(path) as file:
        # Binary lines end at \n only; text mode's splitlines would also break at U+2028.
        for number, line in enumerate(file, start=1):
            stripped = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if stripped:
                yield str(path), number, _parse_line(stripped)


def _read_json(path: Path) -> Iterator[RawRow]:
    """A list of objects, or JSON Lines under the name .json."""
    with _bytes_of(path) as file:
        content = file.read()
    # Bytes that are no UTF-8 become lone surrogates, so they spoil their own row and no other.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] != "[":
        if text.strip() and isinstance(
            _parse_line(text.strip().splitlines()[0].encode("utf-8", errors="surrogateescape")),
            RowProblem,
        ):
            _refuse_one_object(path, text)
        yield from _read_json_lines(path)
        return
    yield from _read_json_list(path, text, start + 1)


def _refuse_one_object(path: Path, text: str) -> None:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        raise DataError(
            f"{path} holds one JSON object with the keys {', '.join(list(whole)[:8])}, not a list "
            "of rows: write a list of objects, or one object per line."
        )


def _read_json_list(path: Path, text: str, at: int) -> Iterator[RawRow]:
    space = re.compile(r"[ \t\r\n]*")

    def skip(position: int) -> int:
        match = space.match(text, position)
        assert match is not None
        return match.end()

    number = 0
    at = skip(at)
    if text[at : at + 1] == "]":
        return
    while True:
        number += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except _DoubledKeyError:
            # The decoder does not say where the element ends; without the check it does.
            value, at = json.JSONDecoder().raw_decode(text, at)
            value = RowProblem("unreadable", "row", "a key is given twice")
        except (json.JSONDecodeError, RecursionError) as error:
            raise _broken_list(path, number, text, getattr(error, "pos", at)) from error
        yield str(path), number, value if isinstance(value, RowProblem) else _row_of(value)
        at = skip(at)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise _broken_list(path, number + 1, text, at)
        at = skip(at + 1)


def _broken_list(path: Path, number: int, text: str, at: int) -> DataError:
    line = text.count("\n", 0, at) + 1
    return DataError(
        f"{path} is one JSON list, and it is broken at row {number} (line {line}), so no row "
        "behind it can be found: mend that place, or write one object per line (.jsonl), where a "
        "broken row costs only itself."
    )


def _read_csv(path: Path) -> Iterator[RawRow]:
    """A header and rows; messages, token weights and token ids are JSON in their cells."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with io.TextIOWrapper(
            _bytes_of(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path} names a column twice in its header: rename one of them.")
            for number in itertools.count(1):
                try:
                    cells = next(lines)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield str(path), number, RowProblem("unreadable", "line", str(error)[:100])
                    continue
                if cells:
                    yield str(path), number, _csv_row(header, cells)
    finally:
        csv.field_size_limit(limit)


def _csv_row(header: list[str], cells: list[str]) -> Mapping[str, Any] | RowProblem:
    if len(cells) != len(header):
        return RowProblem(
            "unreadable", "line", f"{len(cells)} cells under {len(header)} column names"
        )
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    texts = ("prompt", "chosen", "rejected", "conversations", "conversation", "messages")
    numbers = {spelling for spellings in SCORES.values() for spelling in spellings}
    for name, cell in row.items():
        if name in texts:
            row[name] = _cell_messages(cell)
        elif not cell:
            row[name] = None
        elif name in numbers or name in TOKEN_WEIGHTS:
            try:
                row[name] = _DECODER.decode(cell)
            except (ValueError, RecursionError):
                return RowProblem("bad_score", name, "no number")
        elif name in ENDS or name in TOKEN_IDS:
            try:
                # Python and pandas write True and False.
                row[name] = _DECODER.decode(cell.lower())
            except (ValueError, RecursionError):
                return RowProblem("wrong_type", name, "no JSON")
    return row


def _cell_messages(cell: str) -> Any:
    """The messages that a cell holds as JSON, else its text."""
    if not cell.startswith(("[{", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    messages = value if isinstance(value, list) else [value]
    spellings = ({"role", "content"}, {"from", "value"})
    held = all(isinstance(m, dict) and any(s <= m.keys() for s in spellings) for m in messages)
    return value if held else cell


def _read_parquet(path: Path) -> Iterator[RawRow]:
    if path.name.lower().endswith(".gz"):
        with _bytes_of(path) as packed:
            file = pq.ParquetFile(pa.BufferReader(packed.read()))
    else:
        file = pq.ParquetFile(path)
    with file:
        yield from _read_batches(str(path), file.iter_batches(batch_size=1024))


def _read_batches(source: str, batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_arrow_row(batch, i) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield source, number, row


def _arrow_row(batch: pa.RecordBatch | pa.Table, i: int) -> Mapping[str, Any] | RowProblem:
    row: dict[str, Any] = {}
    for name in batch.column_names:
        try:
            row[name] = batch.column(name)[i].as_py()
        except UnicodeDecodeError as error:
            return RowProblem("unreadable", name, f"byte {error.start + 1} is no UTF-8")
    return row


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


def _read_saved(path: Path, split: str) -> Iterator[RawRow]:
    import datasets

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
    return _with_file_errors(path, _read_dataset(str(path), saved))


def _read_dataset(source: str, dataset: Any) -> Iterator[RawRow]:
    return _read_batches(source, dataset.with_format("arrow").iter(batch_size=1024))


def _open_hub(name: str, split: str, revision: str | None) -> Iterator[RawRow]:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub import HfApi

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
    return _read_dataset(f"{name}@{commit or 'main'}", dataset)
