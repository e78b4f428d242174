# pyright: basic
"""What the trainer logs: sums over counts since the last record, and the tokens read so far."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from align.trainers.base import TrainerBase


class Records(TrainerBase):
    """The part of the trainer that writes its log."""

    def _is_logging_step(self) -> bool:
        """Whether the step under way ends with a log.

        Logs at the end of an epoch are not foreseen, so there every step counts as one.
        """
        args, step = self.args, self.state.global_step + 1
        if str(getattr(args.logging_strategy, "value", args.logging_strategy)) != "steps":
            return True
        last = step >= self.state.max_steps
        return (
            step % self.state.logging_steps == 0 or (args.logging_first_step and step == 1) or last
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the sums over counts since the last training log."""
        # The last record of a run, with the mean of the whole, takes what no log has shown yet.
        if "loss" in logs or "train_loss" in logs:
            exact = self.kind.derived(self._train_sums.means(self.accelerator))
            if self.aux_loss_enabled or "loss" not in logs:
                exact.pop("loss", None)
            read, computed = self._tokens_read()
            logs |= exact | {"num_tokens": read, "num_computed_tokens": computed}
            self._train_sums.clear()
        Trainer.log(self, logs, start_time)

    def _tokens_read(self) -> tuple[int, int]:
        """Tokens of all rows trained on, and those computed for them, on all ranks."""
        tokens: Any = torch.tensor(
            [int(self._tokens_here), self._computed_here], device=self.accelerator.device
        )
        summed: Any = self.accelerator.reduce(tokens, "sum")
        read, computed = summed.tolist()
        return read, computed

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Tokens of a batch for `include_num_input_tokens_seen`: "all" counts padding too."""
        asked = self.args.include_num_input_tokens_seen
        if asked == "no":
            return
        here = (
            part["pack"].computed_tokens if asked == "all" else int(part["tokens"].sum())
            for part in inputs["parts"]
        )
        tokens: Any = torch.tensor(sum(here), device=self.accelerator.device)
        summed: Any = self.accelerator.reduce(tokens, "sum")
        self.state.num_input_tokens_seen += int(summed)
