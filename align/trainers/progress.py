"""What a person sees while a recipe trains: one bar or one line per log, not a dictionary."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

logger = logging.getLogger(__name__)

# Log key -> what it is called, and how it is written.
SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "rewards/margins": ("margin", "{:.3f}"),
    "logps/chosen": ("chosen", "{:.2f}"),
    "logps/rejected": ("rejected", "{:.2f}"),
}


def shown(logs: Mapping[str, float]) -> dict[str, str]:
    """The few numbers of a training log that tell how it goes; log-probs are in nats."""
    return {label: form.format(logs[key]) for key, (label, form) in SHOWN.items() if key in logs}


class ProgressBar(ProgressCallback):
    """transformers' bars, with the numbers behind the bar instead of a dictionary above it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the last logged numbers."""
        if logs and "loss" in logs and self.training_bar is not None:
            self.training_bar.set_postfix(shown(logs))


class ProgressLines(TrainerCallback):
    """One line per log with the time left, for terminals that are no terminal."""

    def __init__(self) -> None:
        self._started, self._first = time.monotonic(), 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock; a resumed run starts it at its step."""
        self._started, self._first = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the line."""
        done = state.global_step - self._first
        if not logs or "loss" not in logs or not state.is_world_process_zero or done < 1:
            return
        left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
        numbers = "  ".join(f"{label} {value}" for label, value in shown(logs).items())
        logger.info(
            "step %d/%d  %s  %.0f s left", state.global_step, state.max_steps, numbers, left
        )
