"""All experiments, and the one table they fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from tests.fidelity import language, offline, rounds
from tests.fidelity.laboratory import Row

TABULAR: tuple[Callable[[Sequence[int], int], list[Row]], ...] = (
    offline.dpo,
    offline.copg,
    offline.rdpo,
    offline.rpo,
    rounds.inpo,
    rounds.nash_mp,
    rounds.apo,
    rounds.spo,
    offline.others,
)
SMALL, LARGE = 6, 10  # actions


@dataclass(frozen=True)
class Line:
    """A claim, and what was reached on the smaller and on the larger bandits.

    Attributes:
        first: of the 6 actions, or of the language model.
        second: of the 10 actions; None for the language model.
    """

    first: Row
    second: Row | None

    @property
    def ok(self) -> bool:
        """Whether both were reached, as far as both are claimed."""
        return self.first.ok and (self.second is None or self._unclaimed or self.second.ok)

    @property
    def _unclaimed(self) -> bool:
        return self.second is not None and self.second.stated_for not in (None, LARGE)

    @property
    def cells(self) -> tuple[str, ...]:
        """Method, claim, kind, threshold, reached twice, verdict."""
        row = self.first
        return (
            row.method,
            row.claim,
            row.kind,
            f"{row.sense} {row.threshold:.3g}",
            f"{row.reached:.3g}",
            ""
            if self.second is None
            else f"{self.second.reached:.3g}" + (" (no claim)" if self._unclaimed else ""),
            "ok" if self.ok else "NO",
        )


HEADINGS = ("method", "claim", "kind", "threshold", "6 actions", "10 actions", "")


def reached(seeds: Sequence[int], workers: int = 2) -> list[Line]:
    """Every experiment on bandits of `seeds`: all of them small, the first four large."""
    # Forking after torch has started threads can hang; a spawned child starts clean.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # The longest first, so that no worker is left with one at the end.
        longest = sorted(
            TABULAR, key=lambda one: one not in (rounds.inpo, rounds.spo, rounds.nash_mp)
        )
        jobs = {
            (experiment, actions): pool.submit(_alone, experiment, tuple(chosen), actions)
            for experiment in longest
            for actions, chosen in ((SMALL, seeds), (LARGE, seeds[:4]))
        }
        spoken = pool.submit(language.sequences, tuple(seeds[:2]))
        lines = [
            Line(first, second)
            for experiment in TABULAR
            for first, second in zip(
                jobs[experiment, SMALL].result(), jobs[experiment, LARGE].result(), strict=True
            )
        ]
        return lines + [Line(row, None) for row in spoken.result()]


def as_markdown(lines: Sequence[Line]) -> str:
    """The table for a README."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(line.cells for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _alone(
    experiment: Callable[[Sequence[int], int], list[Row]], seeds: Sequence[int], actions: int
) -> list[Row]:
    torch.set_num_threads(1)
    return experiment(seeds, actions)
