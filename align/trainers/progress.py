"""What a person sees while a recipe trains: one bar or one line per log, not a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.progress import Phase, has_bars

# Log key -> what it is called, and how it is written.
SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "rewards/margins": ("margin", "{:.3f}"),
    "logratios/chosen": ("chosen", "{:+.2f}"),
    "logratios/rejected": ("rejected", "{:+.2f}"),
}


def shown(logs: Mapping[str, float]) -> str:
    """The few numbers of a training log that tell how it goes; log-ratios are in nats."""
    found = [
        f"{label} {form.format(logs[key])}" for key, (label, form) in SHOWN.items() if key in logs
    ]
    return "  ".join(found)


class TrainingProgress(TrainerCallback):
    """Shows steps as a phase; without bars every log of the trainer is a line.

    The last step is logged whatever `logging_steps` says: a short run would have no number at all.
    Its phases are nobody's surroundings: training that fails does not leave them behind.
    """

    def __init__(self) -> None:
        self._training: Phase | None = None
        self._evaluating: Phase | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock; a resumed run starts it at its step."""
        if state.is_world_process_zero:
            self._training = Phase("train", state.max_steps, "steps", state.global_step, None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the step."""
        control.should_log = control.should_log or state.global_step >= state.max_steps
        if self._training is not None:
            self._counted(args, self._training, state.global_step - self._training.done)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the last logged numbers."""
        if logs and "loss" in logs and self._training is not None:
            self._training.count(0, note=shown(logs))
            if args.disable_tqdm or not has_bars():
                self._training.say()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Counts a batch of an evaluation during training."""
        if not state.is_world_process_zero:
            return
        if self._evaluating is None:
            sized = hasattr(eval_dataloader, "__len__")
            total = len(eval_dataloader) if sized else None
            # Known from the end of its first batch on, so that batch is not in the rate.
            self._evaluating = Phase("evaluate", total, "batches", 1, self._training)
            self._evaluating.open()
            self._counted(args, self._evaluating, 0)
        else:
            self._counted(args, self._evaluating, 1)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the evaluation."""
        if self._evaluating is not None:
            self._evaluating.close(is_whole=True)
            self._evaluating = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the phase."""
        if self._training is not None:
            self._training.close(is_whole=True)
            self._training = None

    def _counted(self, args: TrainingArguments, phase: Phase, n: int) -> None:
        if args.disable_tqdm and has_bars():
            phase.count(n)
        else:
            phase(n)
