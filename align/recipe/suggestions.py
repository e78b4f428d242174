"""What to say about a key that no section knows: what it is elsewhere, or the nearest right one."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import cast

from pydantic import BaseModel

from align.recipe.base import KeyPath
from align.recipe.data_recipe import DATA_SECTIONS
from align.recipe.eval_recipe import EVAL_SECTIONS
from align.recipe.refused import OTHER_NAMES, REFUSED
from align.recipe.schemas import LISTS, model_at
from align.recipe.sections import OBJECTIVES, SECTIONS


def unknown_key(path: KeyPath, objective: str) -> str:
    """What to say about a key that no section knows."""
    section, key = ".".join(path[:-1]), path[-1]
    if key == "<<":
        return "merge keys are not read in recipes; write the keys out"
    refused = REFUSED.get(section, {}).get(key)
    if refused is not None:
        return f"not a key of {'this section' if section else 'a recipe'}: {refused}"
    return f"no such key{nearest_key(path, objective)}"


def nearest_key(path: KeyPath, objective: str) -> str:
    """The nearest right key: in the same section, elsewhere, or by another project's name."""
    section, key = path[:-1], path[-1]
    prefix = "".join(f"{part}." for part in section)
    if section and section[0] not in (*SECTIONS, *DATA_SECTIONS, *EVAL_SECTIONS, *LISTS):
        hint = did_you_mean(section[0], SECTIONS)
        return hint or f"; the sections are {', '.join(SECTIONS)}"
    if section == ("objective",):
        known = list(OBJECTIVES[objective].model_fields) if objective else []
        others = [n for n, m in OBJECTIVES.items() if key in m.model_fields]
        if others:
            has = ", ".join([name for name in known if name != "name"])
            return f" for {objective} (it has {has}); {', '.join(others)} would read it"
    else:
        model = model_at(section, objective)
        known = [] if model is None else list(model.model_fields)
    everywhere = [
        f"{name}.{leaf}"
        for name in SECTIONS
        if name != "objective"
        for leaf in cast("type[BaseModel]", model_at((name,), "")).model_fields
    ]
    elsewhere = [full for full in everywhere if full.rpartition(".")[2] == key]
    if elsewhere:
        return f"; did you mean `{elsewhere[0]}`?"
    near = did_you_mean(key, known, prefix)
    if near:
        return near
    if key in OTHER_NAMES:
        return f"; did you mean `{OTHER_NAMES[key]}`?"
    leaves = {full.rpartition(".")[2]: full for full in reversed(everywhere)}
    found = _nearest(key, list(leaves))
    if found is not None and len(key) > 3:
        return f"; did you mean `{leaves[found]}`?"
    if len(known) > 12 or not known:
        return "; see `align recipe explain " + (prefix.rstrip(".") or "") + "`"
    return f"; the keys here are {', '.join(known)}"


def did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str:
    """`; did you mean ...?`, or nothing where no known word is near."""
    found = _nearest(word, known)
    return f"; did you mean `{prefix}{found}`?" if found is not None else ""


def _nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word with the fewest edits, among equals the one most alike; None if far."""
    word = word.lower()
    if len(word) < 2:
        return None
    ranked: list[tuple[int, float, str]] = []
    for candidate in known:
        allowed = max(1, min(len(word), len(candidate)) // 3)
        # Every letter too many or too few costs an edit: a cheap bound before the exact count.
        lacking = (Counter(word) - Counter(candidate)).total()
        spare = (Counter(candidate) - Counter(word)).total()
        if max(lacking, spare) <= allowed:
            edits = _edits(word, candidate.lower())
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
