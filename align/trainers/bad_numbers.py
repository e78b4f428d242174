# pyright: basic
"""A loss or a gradient that nothing can be learnt from stops the run before the step is taken."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from align.errors import NumericalError
from align.trainers.rows import RowPreparation

logger = logging.getLogger(__name__)


class BadNumbers(RowPreparation):
    """The part of the trainer that looks at each step's losses and at its gradient."""

    _is_asked: Tensor
    _last_rows: list[int]

    def _nothing_asked_yet(self) -> None:
        """To be called at the beginning of each optimizer step."""
        self._is_asked = torch.zeros((), dtype=torch.bool, device=self.args.device)

    def _see_gradient(self, gradient: Tensor) -> None:
        """Remembers whether the objective asks any log-prob to change."""
        self._is_asked = self._is_asked | gradient.any()

    def _stop_on_bad_loss(self, loss: Tensor, row_index: Tensor) -> None:
        finite = loss.isfinite()
        if bool(finite.all()):
            return
        names = [self._row_name(i) for i in row_index[~finite].unique().tolist()]
        raise NumericalError(
            f"Step {self.state.global_step + 1}: the loss of {len(names)} {self.kind.noun}(s) is "
            f"infinite or not a number: {', '.join(names[:8])}. The optimizer step was not taken. "
            "Look at these rows, and at the learning rate and precision."
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # An fp16 scaler meets infinite gradients on purpose and skips the step itself.
        if grad_norm is None or self.accelerator.scaler is not None:
            return grad_norm
        value = float(grad_norm)
        if value == 0.0 and not bool(self._is_asked):
            # Clipped rows, or ties of a policy that finds neither side better yet.
            logger.info(
                "Step %d: no %s asks for a change.", self.state.global_step + 1, self.kind.noun
            )
            return grad_norm
        if value == 0.0:
            what = "exactly 0"
            how_on = (
                "Nothing reaches a trained weight: the adapter may be frozen or disabled, or a "
                "quantised layer may have no backward."
            )
        elif not math.isfinite(value):
            what = f"{value}"
            how_on = "Lower the learning rate, or train in a wider precision."
        else:
            return grad_norm
        raise NumericalError(
            f"Step {self.state.global_step + 1}: the gradient's norm is {what}. No step was taken. "
            f"{how_on} Last rows: {', '.join(self._row_name(i) for i in self._last_rows)}."
        )
