"""How far a pipeline is, with what it made so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from align.progress import progress, rounded
from align_data.chunks import Progress


@contextmanager
def shown(name: str, units: int) -> Iterator[Callable[[Progress], None]]:
    """What is to hear of every chunk of a stage, while the block runs."""
    with progress(name, units, "units") as phase:

        def told(so_far: Progress) -> None:
            if not so_far.fresh:
                phase.resume(so_far.done, note=in_words(so_far))
            else:
                phase(so_far.done - phase.done, note=in_words(so_far))

        yield told


def in_words(so_far: Progress) -> str:
    """`310 pairs, 41 dropped, 1.2M tokens`."""
    counts = dict(so_far.counts)
    parts = [f"{counts.pop(name, 0)} {name}" for name in ("pairs", "dropped")]
    parts += [f"{rounded(n)} {name.replace('_', ' ')}" for name, n in sorted(counts.items()) if n]
    return ", ".join(parts)
