"""Arena-Hard's verdicts: five labels in brackets, the last one counts.

Source: lmarena/arena-hard-auto, commit 196f6b8, gen_judgment.py and show_result.py. Differs from
it: what is in brackets and is none of the labels gives no verdict, where the original stops with a
KeyError.
"""

from __future__ import annotations

import re
from typing import Literal

Label = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

# Tried in this order on the text in upper case.
PATTERNS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))
LABELS: dict[str, Label] = {
    "A>>B": "A>>B",
    "A>B": "A>B",
    "A=B": "A=B",
    "B>A": "B>A",
    "B>>A": "B>>A",
    "B<<A": "A>>B",
    "B<A": "A>B",
    "B=A": "A=B",
    "A<B": "B>A",
    "A<<B": "B>>A",
}
# P(A is better), and whether the label is a strong one.
MEANING: dict[Label, tuple[float, bool]] = {
    "A>>B": (1.0, True),
    "A>B": (1.0, False),
    "A=B": (0.5, False),
    "B>A": (0.0, False),
    "B>>A": (0.0, True),
}
_BRACKETED = re.compile(r"(\[+)([AB<>=]+)(\]+)", flags=re.IGNORECASE)


def parse_verdict(text: str) -> Label | None:
    """The verdict of a judge's answer, or None.

    Double brackets go before single ones; of several the last one counts, also where it is none of
    the labels: a judge that ends with a broken label has no verdict.
    """
    for pattern in PATTERNS:
        if found := pattern.findall(text.upper()):
            return LABELS.get(found[-1])
    return None


def scores_of(label: Label, *, weight: int) -> list[float]:
    """P(A is better), once, or `weight` times where the verdict is a strong one."""
    score, is_strong = MEANING[label]
    return [score] * (weight if is_strong else 1)


def without_labels(text: str) -> tuple[str, int]:
    """The text with round brackets around everything a verdict could be read from, and the count.

    A judge that quotes such an answer behind its verdict would else give the answer's verdict.
    """
    return _BRACKETED.subn(lambda match: "(" * len(match[1]) + match[2] + ")" * len(match[3]), text)
