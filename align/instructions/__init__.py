"""Instructions whose fulfilment a program can check, as the IFEval benchmark asks them.

One file per group of kinds, each kind a frozen value with its settings. `kinds` finds them by name,
`reading` has the strict and the loose reading of an answer, `earnest` the guard against answers
that game a check.
"""

from align.instructions.base import Instruction
from align.instructions.earnest import is_earnest
from align.instructions.kinds import KINDS, constraint_from, from_public, row_instructions
from align.instructions.reading import met_loosely, readings

__all__ = [
    "KINDS",
    "Instruction",
    "constraint_from",
    "from_public",
    "is_earnest",
    "met_loosely",
    "readings",
    "row_instructions",
]
