"""The errors a user can cause or meet, each with its exit code; all also stdlib errors.

The message is one paragraph: what was found, where (file and row, or recipe key), how to go on. The
command line prints it without a stack trace and leaves with `exit_code`.
"""

from typing import ClassVar


class AlignError(Exception):
    """Root of every error this library raises on purpose."""

    exit_code: ClassVar[int] = 1


class RecipeError(AlignError, ValueError):
    """A recipe or a command line that cannot be run as written."""

    exit_code = 2


class DataError(AlignError, ValueError):
    """Rows that cannot be read, or too many of them that cannot be used."""

    exit_code = 3


class MachineError(AlignError, OSError):
    """A missing package, a wrong version, no disk, no memory, no network."""

    exit_code = 4


class NumericalError(AlignError, ArithmeticError):
    """Training stopped: a loss, gradient, weight or start-up probe is not what it must be."""

    exit_code = 5


class Interrupted(AlignError, RuntimeError):
    """Stopped from outside; running the same command again goes on from here."""

    exit_code = 75
