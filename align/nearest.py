"""The nearest right word to a wrong one."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence


def did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str:
    """`; did you mean ...?`, or nothing where no known word is near."""
    found = nearest(word, known)
    return f"; did you mean `{prefix}{found}`?" if found is not None else ""


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word with the fewest edits, among equals the one most alike; None if far."""
    word = word.lower()
    if len(word) < 2:
        return None
    ranked: list[tuple[int, float, str]] = []
    for candidate in known:
        allowed = max(1, min(len(word), len(candidate)) // 3)
        # Every letter too many or too few costs an edit: a cheap bound before the exact count.
        plain = candidate.lower()
        lacking = (Counter(word) - Counter(plain)).total()
        spare = (Counter(plain) - Counter(word)).total()
        if max(lacking, spare) <= allowed:
            edits = _edits(word, plain)
            if edits <= allowed:
                alike = difflib.SequenceMatcher(None, word, candidate).ratio()
                ranked.append((edits, -alike, candidate))
    if ranked:
        return min(ranked)[2]
    containing = [w for w in known if len(word) > 3 and len(w) > 3 and (word in w or w in word)]
    return containing[0] if containing else None


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with the neighbour to make b of a."""
    older: list[int] = []
    old = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        new = [i]
        for j in range(1, len(b) + 1):
            cost = min(old[j] + 1, new[j - 1] + 1, old[j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, older[j - 2] + 1)
            new.append(cost)
        older, old = old, new
    return old[-1]
