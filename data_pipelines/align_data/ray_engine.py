"""Chunks on the actors of Ray Data: many processes here, or many machines of a Ray cluster."""

# What is unpickled here was pickled by the other side of the same run, within Ray's own cluster,
# which exchanges pickles anyway; nothing is read from a file.

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from align.data.built import Built
from align.errors import MachineError
from align_data.chunks import Chunk, Opening


class _Actor:
    """Holds what `opening` made ready, for all the chunks that this worker is given."""

    def __init__(self, opening: bytes) -> None:
        self._stack = ExitStack()
        self._work = self._stack.enter_context(pickle.loads(opening)())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = pickle.loads(row["chunk"])
        started = time.monotonic()
        built = self._work(chunk.units)
        return {
            "number": chunk.number,
            "built": pickle.dumps(built),
            "seconds": time.monotonic() - started,
        }


@dataclass(frozen=True)
class RayActors:
    """`workers` processes, each of which loads the models once.

    Joins the cluster that RAY_ADDRESS names, else starts one here. What workers read must be
    reachable from all of them: shared storage, or a Hub id.

    Attributes:
        workers: number of actors.
        cpus: that each may use.
        gpus: that each may use; a fraction lets actors share one.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0

    def run(
        self, chunks: Sequence[Chunk], opening: Opening
    ) -> Iterator[tuple[Chunk, list[Built], float]]:
        """In the order in which the workers end them.

        Raises:
            MachineError: Ray is not installed.
        """
        ray = _ray()
        by_number = {chunk.number: chunk for chunk in chunks}
        was_there = ray.is_initialized()
        if not was_there:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            rows = ray.data.from_items(
                [{"chunk": pickle.dumps(chunk)} for chunk in chunks],
                override_num_blocks=len(chunks),
            )
            done = rows.map(
                _Actor,
                fn_constructor_args=(ray.cloudpickle.dumps(opening),),
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(chunks))),
                num_cpus=self.cpus,
                num_gpus=self.gpus or None,
            )
            for row in done.iter_rows():
                built: list[Built] = pickle.loads(row["built"])
                yield by_number[int(row["number"])], built, float(row["seconds"])
        finally:
            if not was_there:
                ray.shutdown()


def _ray() -> Any:
    """Ray is large and optional, so it is imported where it is asked for."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MachineError(
            f"`engine: ray` needs Ray, which cannot be imported ({error}). Install it with "
            "`pip install 'align-toolkit[scale]'`, or write `engine: local`."
        ) from error
    return ray
