"""Chunks are done once each, in any order, by anybody; the results stand in the units' order."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from align.data.built import Built
from align.data.questions import Question
from align.errors import Interrupted, RecipeError
from align.progress import Phase
from align.runs.ledger import read_records
from align_data.chunks import Chunk, InProcess, Progress, cut, run_chunks
from align_data.progress import shown
from align_data.ray_engine import RayActors


def questions(n: int) -> list[Question]:
    return [Question(prompt=f"question {i}", source="test", row=i + 1) for i in range(n)]


def built(unit: Question, beside: int) -> Built:
    """What depends on the unit and on the size of its chunk."""
    return Built(uid=str(unit.row), read=1, counts={"tokens": beside}, record={"text": unit.prompt})


class Worker:
    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.fails_at = fails_at
        self.opened = 0

    @contextmanager
    def __call__(self) -> Iterator["Worker"]:
        self.opened += 1
        yield self.Work(self)

    class Work:
        def __init__(self, owner: "Worker") -> None:
            self.owner = owner

        def __call__(self, units: Sequence[Question]) -> list[Built]:
            if self.owner.fails_at in [unit.row for unit in units]:
                raise OSError("the machine went away")
            self.owner.seen += [unit.row for unit in units]
            return [built(unit, len(units)) for unit in units]


def silent(progress: Progress) -> None:
    pass


def nothing() -> None:
    pass


def run(units, worker, journal: Path, *, size=2, engine=None, told=silent, check=nothing):
    return run_chunks(
        units, worker, size=size, journal=journal, engine=engine or InProcess(), told=told,
        check=check,
    )  # fmt: skip


def test_a_run_that_broke_goes_on_behind_the_last_whole_chunk(tmp_path: Path) -> None:
    journal = tmp_path / "chunks.jsonl"
    first = Worker(fails_at=5)  # in the third of four chunks
    with pytest.raises(OSError, match="went away"):
        run(questions(7), first, journal)
    second = Worker()
    results = run(questions(7), second, journal)
    assert (first.seen, second.seen) == ([1, 2, 3, 4], [5, 6, 7])
    assert results == run(questions(7), Worker(), tmp_path / "straight.jsonl")
    assert [one.counts["tokens"] for one in results] == [2, 2, 2, 2, 2, 2, 1]


def test_a_finished_journal_opens_no_model(tmp_path: Path) -> None:
    run(questions(4), Worker(), tmp_path / "j.jsonl")
    worker = Worker()
    run(questions(4), worker, tmp_path / "j.jsonl")
    assert worker.opened == 0


def test_other_units_under_a_journal_are_refused(tmp_path: Path) -> None:
    run(questions(4), Worker(), tmp_path / "j.jsonl")
    for other, size in ((questions(3), 2), (questions(4)[::-1], 2), (questions(4), 3)):
        with pytest.raises(RecipeError, match="other units of work"):
            run(other, Worker(), tmp_path / "j.jsonl", size=size)


def test_the_order_in_which_chunks_end_has_no_influence(tmp_path: Path) -> None:
    class Backwards:
        def run(self, chunks: Sequence[Chunk], opening):
            yield from reversed(list(InProcess().run(chunks, opening)))

    backwards = run(questions(5), Worker(), tmp_path / "a.jsonl", engine=Backwards())
    assert [one.uid for one in backwards] == ["1", "2", "3", "4", "5"]
    assert backwards == run(questions(5), Worker(), tmp_path / "b.jsonl")


def test_a_signal_stops_between_two_chunks_and_loses_none(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    worker = Worker()
    with pytest.raises(Interrupted):
        run(questions(6), worker, tmp_path / "j.jsonl", check=stop)
    assert worker.seen == [1, 2]
    assert [line["number"] for line in read_records(tmp_path / "j.jsonl")] == [0]


def test_progress_counts_the_journal_as_done_and_not_as_fresh(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="went away"):
        run(questions(6), Worker(fails_at=5), tmp_path / "j.jsonl")
    told: list[tuple[int, int, int]] = []

    def hear(progress: Progress) -> None:
        told.append((progress.done, progress.fresh, progress.counts.get("tokens", 0)))

    run(questions(6), Worker(), tmp_path / "j.jsonl", told=hear)
    # Four units came out of the journal with 2 tokens each, two more were done.
    assert told == [(4, 0, 8), (6, 2, 12)]


def test_a_unit_without_a_result_is_a_mistake_of_the_pipeline(tmp_path: Path) -> None:
    class Forgets:
        def run(self, chunks, opening):
            yield chunks[0], [], 0.0

    with pytest.raises(RuntimeError, match="0 results for 2 units"):
        run(questions(2), Worker(), tmp_path / "j.jsonl", engine=Forgets())


def test_chunks_are_fixed_slices() -> None:
    assert [len(chunk.units) for chunk in cut(questions(7), 3)] == [3, 3, 1]
    assert cut(questions(7), 3)[0].key == cut(questions(3), 3)[0].key
    with pytest.raises(ValueError, match="1 unit or more"):
        cut(questions(1), 0)


@contextmanager
def opened_in_a_worker(folder: str) -> Iterator:
    (Path(folder) / str(os.getpid())).touch()
    yield lambda units: [built(unit, len(units)) for unit in units]


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's log files
def test_two_ray_workers_give_the_rows_of_one_process(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `scale`)")
    # The workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = tmp_path / "workers"
    folder.mkdir()
    opening = partial(opened_in_a_worker, str(folder))
    there = run(questions(8), opening, tmp_path / "ray.jsonl", engine=RayActors(workers=2))
    here = run(questions(8), opening, tmp_path / "here.jsonl")
    assert there == here
    workers = {int(path.name) for path in folder.iterdir()} - {os.getpid()}
    assert len(workers) == 2


def test_what_a_pipeline_shows_is_its_units_and_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: Any
) -> None:
    with pytest.raises(OSError, match="went away"):
        run(questions(6), Worker(fails_at=5), tmp_path / "j.jsonl")
    notes: list[str] = []
    count = Phase.count

    def counted(self: Phase, n: int = 1, tokens: int = 0, *, note: str | None = None) -> None:
        notes.append(f"{self.done}+{n}: {note}")
        count(self, n, tokens, note=note)

    monkeypatch.setattr(Phase, "count", counted)
    with shown("mcts", 6) as told:
        run(questions(6), Worker(), tmp_path / "j.jsonl", told=told)
    # Four units came out of the journal, with two tokens each.
    assert notes == [
        "4+0: 0 pairs, 0 dropped, 8 tokens",
        "4+2: 0 pairs, 0 dropped, 12 tokens",
    ]
    assert phases == [("mcts", "units", 6, [6], 0)]
