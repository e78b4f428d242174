# pyright: basic
"""Callbacks that stop a run: at once on bad numbers, in good order on a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import NumericalError
from align.trainers.sharding import here


class StopOnBadWeights(TrainerCallback):
    """Looks at every trained weight after each optimizer step.

    Raises:
        NumericalError: a weight is not finite. No checkpoint of it is written.
    """

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at the weights that the step left."""
        trained = [p for p in kwargs["model"].parameters() if p.requires_grad]
        if not trained:
            return
        # An empty shard has no largest weight.
        shards = [shard for p in trained if (shard := here(p)).numel()]
        largest = torch.nn.utils.get_total_norm(shards, float("inf"))
        is_bad = not bool(largest.isfinite())
        if any(here(p) is not p for p in trained):
            # Others would wait for the shards of the rank that stops.
            is_bad = _on_any_rank(is_bad)
        if is_bad:
            raise NumericalError(
                f"Step {state.global_step + 1}: a weight became infinite or not a number in the "
                f"optimizer step. The learning rate {args.learning_rate:g} is probably too high. "
                "The last checkpoint is intact; lower train.learning_rate and start a new run."
            )


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT: finishes the step, saves a checkpoint, and stops.

    `stopped` then is the signal's name. The former handlers come back when training ends. Outside
    the main thread Python accepts no handlers, and this does nothing.
    """

    def __init__(self) -> None:
        self.stopped: str | None = None
        self._former: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the two signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Asks for a checkpoint and the end of training, on all ranks at the same step."""
        if _on_any_rank(self.stopped is not None):
            self.stopped = self.stopped or "a signal to another rank"
            control.should_save = True
            control.should_training_stop = True
        return control

    def release(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


def _on_any_rank(here: bool) -> bool:
    # A signal reaches the ranks at different steps; stopping at different steps would leave one of
    # them waiting.
    if not torch.distributed.is_initialized():
        return here
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
