# pyright: basic
"""A loss or a gradient that nothing can be learnt from stops the run before the step is taken."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from align.errors import NumericalError
from align.objectives.refusals import Refusals
from align.trainers.rows import RowPreparation

logger = logging.getLogger(__name__)


class BadNumbers(RowPreparation):
    """The part of the trainer that looks at each step's losses and at its gradient.

    The passes of a step only note down what is to be looked at, and one look is taken before the
    optimizer moves a weight: each look makes the host wait for the device.
    """

    _is_asked: Tensor
    _last_rows: Tensor
    _losses: list[tuple[Tensor, Tensor]]
    _refusals: Refusals

    def _nothing_asked_yet(self) -> None:
        """To be called at the beginning of each optimizer step."""
        self._is_asked = torch.zeros((), dtype=torch.bool, device=self.args.device)
        self._losses, self._refusals = [], Refusals()

    def _see_gradient(self, gradient: Tensor) -> None:
        """Remembers whether the objective asks any log-prob to change."""
        self._is_asked = self._is_asked | gradient.any()

    def _see_loss(self, loss: Tensor, row_index: Tensor) -> None:
        """Remembers the losses [N] of a pass, of the rows with these indices [N].

        The engine of DeepSpeed takes the optimizer's step inside the last backward pass, so there
        the look is taken here.
        """
        self._losses.append((loss, row_index))
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            self._look(None)

    def _look(self, norm: Any) -> tuple[bool, float]:
        """The one look of a step.

        Args:
            norm: of the gradient; None where it is not known.

        Returns:
            Whether any log-prob was asked to change, and the norm; nan where it is not known.

        Raises:
            NumericalError: a loss is not finite.
            AlignError: a row's values cannot be used, as the objective says.
        """
        losses, self._losses = self._losses, []
        nothing = torch.zeros((), dtype=torch.bool, device=self.args.device)
        refused = self._refusals.any
        finite = [loss.isfinite().all() for loss, _ in losses]
        seen = [
            nothing if refused is None else refused,
            ~torch.stack(finite).all() if finite else nothing,
            self._is_asked,
        ]
        values = [value.to(torch.float64) for value in seen]
        if isinstance(norm, Tensor):
            whole: Any = norm
            # Of sharded weights it is one more kind of tensor.
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            values.append(whole.detach().to(values[0]))
        is_refused, is_bad, is_asked, *found = torch.stack(values).tolist()
        if is_refused:
            self._refusals.tell()
        self._refusals.clear()
        if is_bad:
            self._stop_on_bad_loss(*(torch.cat(parts) for parts in zip(*losses, strict=True)))
        if norm is not None and not found:
            found = [float(norm)]
        return bool(is_asked), found[0] if found else math.nan

    def _stop_on_bad_loss(self, loss: Tensor, row_index: Tensor) -> None:
        """Looks at once; for passes that are no part of a training step.

        Raises:
            NumericalError: a loss is not finite.
        """
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
        is_asked, value = self._look(grad_norm)
        # An fp16 scaler meets infinite gradients on purpose and skips the step itself.
        if grad_norm is None or self.accelerator.scaler is not None:
            return grad_norm
        if value == 0.0 and not is_asked:
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
            f"{how_on} Last rows: {', '.join(map(self._row_name, self._last_rows.tolist()))}."
        )
