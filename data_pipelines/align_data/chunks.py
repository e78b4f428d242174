"""Units of work in fixed chunks: each chunk is done once, whoever does it and however often killed.

A chunk is a fixed slice of the units, and what becomes of a unit depends on its chunk alone. So the
rows are the same whatever the engine, the number of workers and the interruptions: a chunk that
is in the journal is not done again, one that is not is done whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from align.data.built import Built
from align.data.records import Record, content_id
from align.errors import RecipeError
from align.runs.ledger import Ledger

STEP = "chunk"


class Work(Protocol):
    """A pipeline's core: what becomes of each unit of a chunk, in order."""

    def __call__(self, units: Sequence[Any]) -> list[Built]:
        """One `Built` per unit; the same whenever it is called with the same units."""
        ...


# Makes a `Work` ready: loads models, opens the call store. It is sent to the workers of an engine.
Opening = Callable[[], AbstractContextManager[Work]]


@dataclass(frozen=True)
class Chunk:
    """Units that are worked on together.

    Attributes:
        number: from 0.
        key: of the units' content.
        units: one or more.
    """

    number: int
    key: str
    units: tuple[Record, ...]


class Engine(Protocol):
    """Who works on the chunks."""

    def run(
        self, chunks: Sequence[Chunk], opening: Opening
    ) -> Iterator[tuple[Chunk, list[Built], float]]:
        """Each chunk once, in any order, with what became of its units and the seconds it took."""
        ...


@dataclass(frozen=True)
class InProcess:
    """One chunk after the other, here."""

    def run(
        self, chunks: Sequence[Chunk], opening: Opening
    ) -> Iterator[tuple[Chunk, list[Built], float]]:
        """In the order of the chunks."""
        with opening() as work:
            for chunk in chunks:
                started = time.monotonic()
                yield chunk, work(chunk.units), time.monotonic() - started


@dataclass
class Progress:
    """How far a stage is; a chunk of the journal counts as done at once.

    Attributes:
        units: in all.
        done: so far.
        fresh: those of them that this process did.
        counts: of the pipeline, added up: pairs, dropped, tokens, calls.
    """

    units: int
    done: int = 0
    fresh: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, built: Sequence[Built], *, is_fresh: bool) -> None:
        """Counts a chunk."""
        self.done += len(built)
        self.fresh += len(built) if is_fresh else 0
        for one in built:
            of_pairs = {"pairs": len(one.pairs), "dropped": len(one.dropped)}
            for name, n in {**of_pairs, **one.counts}.items():
                self.counts[name] = self.counts.get(name, 0) + n


def cut(units: Sequence[Record], size: int) -> list[Chunk]:
    """Chunks of `size` units, the last one shorter."""
    if size < 1:
        raise ValueError(f"a chunk holds 1 unit or more, not {size}")
    chunks: list[Chunk] = []
    for number, start in enumerate(range(0, len(units), size)):
        slice_ = tuple(units[start : start + size])
        key = content_id([unit.model_dump(mode="json") for unit in slice_])
        chunks.append(Chunk(number, key, slice_))
    return chunks


def run_chunks(
    units: Sequence[Record],
    opening: Opening,
    *,
    size: int,
    journal: Path,
    engine: Engine,
    told: Callable[[Progress], None],
    check: Callable[[], None],
) -> list[Built]:
    """What became of every unit, in their order.

    Args:
        units: all of them.
        opening: makes the pipeline's core ready; not called where the journal holds everything.
        size: units of a chunk; another size makes other chunks, hence perhaps other rows.
        journal: file that a killed run finds again; a chunk is in it, on disk, before it counts.
        engine: who works.
        told: hears after every chunk how far it is.
        check: raises where a signal asks to stop; called between two chunks.

    Raises:
        RecipeError: the journal is of other units.
    """
    chunks = cut(units, size)
    found: dict[int, list[Built]] = {}
    progress = Progress(len(units))
    with Ledger(journal) as ledger:
        for line in ledger.records():
            number = line["number"]
            if number >= len(chunks) or line["key"] != chunks[number].key:
                raise RecipeError(
                    f"{journal} was begun with other units of work: the prompts or rows changed "
                    "under the run. Put them back, or delete that file to begin the stage anew."
                )
            found[number] = [Built.model_validate(built) for built in line["built"]]
            progress.add(found[number], is_fresh=False)
        missing = [chunk for chunk in chunks if chunk.number not in found]
        told(progress)
        if missing:
            for chunk, built, seconds in engine.run(missing, opening):
                if len(built) != len(chunk.units):
                    raise RuntimeError(f"{len(built)} results for {len(chunk.units)} units")
                about = {
                    "number": chunk.number,
                    "key": chunk.key,
                    "built": [one.model_dump(mode="json") for one in built],
                }
                ledger.append(STEP, seconds, about)
                # As the journal gives it back, so that a resumed run sees the same values.
                found[chunk.number] = [Built.model_validate(one) for one in about["built"]]
                progress.add(built, is_fresh=True)
                told(progress)
                check()
    return [one for number in range(len(chunks)) for one in found[number]]
