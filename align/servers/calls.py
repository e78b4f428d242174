"""A store of answered model calls: an acknowledged answer is never asked again.

One SQLite file in WAL mode with full synchronisation; several threads and processes may use one.
Only answers are stored: an error or an empty answer is refused, so a failed call is asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import AlignError, DataError, MachineError

LAYOUT = 1
# Seconds that one process waits for the write of another.
BUSY = 60.0
EXPORT_ROWS = 1000


def calls_file(folder: Path) -> Path:
    """The store of a run's or loop's folder: in it, or below $ALIGN_CALLS where that is set.

    SQLite needs a file system with real locks; `ALIGN_CALLS` names a local disk for runs whose
    folder several machines share.
    """
    local = os.environ.get("ALIGN_CALLS")
    if not local:
        return folder / "calls.sqlite"
    of_folder = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(local) / f"{of_folder}.sqlite"


def key_of(
    *,
    prompt_bytes: bytes,
    model: str,
    revision: str,
    parameters: Mapping[str, Any],
    template: str,
    parser: str,
    sample: int,
) -> str:
    """Sha256 in hex over everything that an answer depends on, each part with its length before it.

    Args:
        prompt_bytes: exactly what the model is asked.
        model: its name.
        revision: which weights bear the name now; a loop changes them every round.
        parameters: exactly what goes along with the prompt, in strict JSON.
        template: version of what the prompt was made with.
        parser: version of what decides whether an answer is usable.
        sample: number of the repetition.
    """
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"), allow_nan=False)
    texts = (model, revision, canonical, template, parser, str(sample))
    h = hashlib.sha256()
    for part in (prompt_bytes, *(text.encode("utf-8", "surrogatepass") for text in texts)):
        h.update(len(part).to_bytes(8, "big") + part)
    return h.hexdigest()


@dataclass(frozen=True)
class Answered:
    """One answer that is to be stored.

    Attributes:
        key: from `key_of`.
        about: what was asked, for people and exports; strict JSON, no secret.
        answer: not empty.
    """

    key: str
    about: Mapping[str, Any]
    answer: str


class CallStore:
    """The answers in one file.

    Args:
        path: made when absent, its folder too.

    Raises:
        DataError: the file is there and is no call store.
        MachineError: it cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Transactions are opened by hand; the lock makes the connection safe across threads.
            self._connection = sqlite3.connect(
                path, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._trouble(error) from error
        except AlignError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        connection = self._connection
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise MachineError(
                f"The call store {self.path} lies on a file system that cannot hold a write-ahead "
                "log. Put the run on a local disk."
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        if layout not in (0, LAYOUT) or (layout == 0 and tables):
            raise DataError(
                f"{self.path} is a database, but no call store of layout {LAYOUT} (layout "
                f"{layout}, {len(tables)} tables). Give the calls another file, or delete this one."
            )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, about TEXT NOT NULL, "
            "answer TEXT NOT NULL CHECK (answer <> ''), digest TEXT NOT NULL)"
        )
        connection.execute(f"PRAGMA user_version={LAYOUT}")
        connection.execute("COMMIT")

    def _trouble(self, error: Exception) -> AlignError:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError
        ):
            return DataError(
                f"{self.path} is damaged or no call store ({error}). Delete it, or put a copy "
                "back: what it held will be asked again."
            )
        return MachineError(
            f"The call store {self.path} cannot be used ({error}). Look at the disk's free space "
            "and at the rights of the folder, and run the same command again: what was "
            "acknowledged is not asked twice."
        )

    def get(self, key: str) -> str | None:
        """The stored answer, or None.

        Raises:
            DataError: the stored answer is not what was written.
        """
        with self._lock:
            try:
                row = self._connection.execute(
                    "SELECT answer, digest FROM calls WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error as error:
                raise self._trouble(error) from error
        return None if row is None else self._checked(key, *row)

    def _checked(self, key: str, answer: str, digest: str) -> str:
        if _digest(key, answer) != digest:
            raise DataError(
                f"{self.path}, key {key}: the stored answer has changed since it was written. "
                "Delete the file, or put a copy back: what it held will be asked again."
            )
        return answer

    def put(self, key: str, request_about: Mapping[str, Any], answer: str) -> str:
        """Stores one answer, on disk before it returns; see `put_many`."""
        return self.put_many([Answered(key, request_about, answer)])[0]

    def put_many(self, answers: Iterable[Answered]) -> list[str]:
        """Stores answers in one transaction, on disk before it returns.

        Returns:
            The answers that stand. Where a key has one already, the first stays: another process
            may have gone on with it.

        Raises:
            ValueError: an answer is empty; nothing of the call is stored then.
        """
        rows: list[tuple[str, str, str, str]] = []
        for new in answers:
            if not new.answer.strip():
                raise ValueError(f"An empty answer is no answer and is not stored: {new.key}.")
            about = json.dumps(new.about, sort_keys=True, allow_nan=False)
            rows.append((new.key, about, new.answer, _digest(new.key, new.answer)))
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._connection.executemany(
                        "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?)", rows
                    )
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._trouble(error) from error
        standing = [self.get(key) for key, *_ in rows]
        assert None not in standing
        return [answer for answer in standing if answer is not None]

    def __len__(self) -> int:
        with self._lock:
            try:
                (count,) = self._connection.execute("SELECT COUNT(*) FROM calls").fetchone()
            except sqlite3.Error as error:
                raise self._trouble(error) from error
        return count

    def export_parquet(self, path: Path) -> int:
        """Writes key, about (JSON) and answer of every call, in the order of the keys.

        Returns:
            The number of rows. The order does not depend on when an answer came.
        """
        import pyarrow  # heavy: only for the export
        import pyarrow.parquet

        schema = pyarrow.schema([(name, pyarrow.string()) for name in ("key", "about", "answer")])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        last, count = "", 0
        with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
            while rows := self._after(last):
                for key, _, answer, digest in rows:
                    self._checked(key, answer, digest)
                columns = list(zip(*(row[:3] for row in rows), strict=True))
                writer.write_table(pyarrow.table(dict(zip(schema.names, columns, strict=True))))
                last, count = rows[-1][0], count + len(rows)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        return count

    def _after(self, key: str) -> list[tuple[str, str, str, str]]:
        """The next rows in the order of the keys."""
        with self._lock:
            try:
                return self._connection.execute(
                    "SELECT key, about, answer, digest FROM calls WHERE key > ? ORDER BY key "
                    "LIMIT ?",
                    (key, EXPORT_ROWS),
                ).fetchall()
            except sqlite3.Error as error:
                raise self._trouble(error) from error

    def close(self) -> None:
        """Lets the file go; what was put stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> CallStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _digest(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
