"""The trainer's log: means over updates, processes and batches."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from align.diffusion.objectives import DenoisingOutput
from align.errors import NumericalError

logger = logging.getLogger(__name__)


class TrainingLog:
    """What was noted since the last entry, and the entries.

    Attributes:
        history: the entries.
        sums: what was noted since the last one, by name.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.sums: dict[str, list[float]] = defaultdict(list)
        self._started, self._first = time.monotonic(), 0

    def go_on(self, step: int, history: Sequence[dict[str, Any]], sums: Mapping[str, Any]) -> None:
        """Starts the clock, after `step` updates of an earlier process."""
        self.history = list(history)
        self.sums.update(sums)
        self._started, self._first = time.monotonic(), step

    def note(self, step: int, output: DenoisingOutput) -> None:
        """Takes the means of one batch.

        Raises:
            NumericalError: the loss is not finite.
        """
        loss = float(output.loss.detach().mean())
        if not math.isfinite(loss):
            raise NumericalError(
                f"The loss of update {step + 1} is {loss}. A lower train.learning_rate or "
                "objective.beta is the usual cure; the checkpoint before it is kept."
            )
        self.sums["loss"].append(loss)
        for name, metric in output.metrics.items():
            self.sums[name].append(float(metric.mean()))

    def write(self, accelerator: Accelerator, step: int, of: int, about: Mapping[str, Any]) -> None:
        """Makes an entry of what was noted; every process calls it."""
        names = sorted(self.sums)
        means = torch.tensor(
            [sum(self.sums[name]) / len(self.sums[name]) for name in names],
            device=accelerator.device,
        )
        means = accelerator.reduce(means, "mean")
        assert isinstance(means, torch.Tensor)
        entry = {"step": step, **about, **dict(zip(names, means.tolist(), strict=True))}
        self.sums.clear()
        self.history.append(entry)
        left = (time.monotonic() - self._started) / max(1, step - self._first) * (of - step)
        if accelerator.is_main_process:
            logger.info("step %d/%d  loss %.4f  %.0f s left", step, of, entry["loss"], left)
