"""Bad values that a formula finds in its tensors: told at once, or of many passes with one look.

Whether a tensor holds a bad value is known where the tensor is. To ask for it makes the host wait
until the device has done all that it was given, so a trainer asks once for all passes of an
optimizer step, before the step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from align.errors import AlignError

# Number of a row -> the error; None where it was only to be said, as a warning is.
Tell = Callable[[int], AlignError | None]


class Refusals:
    """What formulas had to say while `collecting`, not yet looked at."""

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, Tell]] = []

    def add(self, bad: Tensor, tell: Tell) -> None:
        """See `refuse`."""
        self._found.append((bad, tell))

    @property
    def any(self) -> Tensor | None:
        """[] bool on the device, whether anything is refused; None where nothing was looked for."""
        if not self._found:
            return None
        return torch.stack([bad.any() for bad, _ in self._found]).any()

    def tell(self) -> None:
        """Forgets everything, and raises where anything is refused.

        Raises:
            AlignError: of the first row that is refused.
        """
        refused, found, self._found = self.any, self._found, []
        if refused is None or not bool(refused):
            return
        for bad, tell in found:
            if bad.any() and (error := tell(int(bad.nonzero()[0, 0]))) is not None:
                raise error

    def clear(self) -> None:
        """Forgets everything."""
        self._found = []


_collected: ContextVar[Refusals | None] = ContextVar("refusals", default=None)


@contextmanager
def collecting(refusals: Refusals) -> Generator[None]:
    """Inside, `refuse` only notes down what it would have to look at."""
    token = _collected.set(refusals)
    try:
        yield
    finally:
        _collected.reset(token)


def refuse(bad: Tensor, tell: Tell) -> None:
    """Raises what `tell` says of the first row where `bad` [B] is True, or leaves it to be told.

    Args:
        bad: which rows cannot be used.
        tell: number of a row -> the error; None is none.

    Raises:
        AlignError: at once, unless refusals are being collected.
    """
    if (refusals := _collected.get()) is None:
        refusals = Refusals()
        refusals.add(bad, tell)
        refusals.tell()
    else:
        refusals.add(bad, tell)
