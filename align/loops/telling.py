"""What a stage's report and a changed setting say, in words: names first, hashes never."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

HASH = re.compile(r"[0-9a-f]{10,64}")
# So many changed settings are told, and so many characters of a value.
TOLD, WIDTH = 3, 40


def numbers(report: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a stage's report by name; those of counts by reason as `dropped: tie`."""
    found: dict[str, int | float] = {}
    for name, value in report.items():
        label = name.replace("_", " ").replace("/", " ")
        if _is_number(value):
            found[label] = value
        elif isinstance(value, Mapping):
            counts: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
            found |= {
                f"{label}: {reason.replace('_', ' ')}": n
                for reason, n in counts.items()
                if isinstance(n, int) and not isinstance(n, bool)
            }
    return found


def in_words(report: Mapping[str, Any]) -> str:
    """`prompts 24, completions 93, failed: unfinished 3`; zeros that count losses are left out."""
    found = numbers(report)
    return ", ".join(f"{name} {shown(n)}" for name, n in found.items() if n or ":" not in name)


def shown(number: float) -> str:
    """Integers whole, others with three digits."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.3g}"


def changes(then: Any, now: Any) -> str:
    """What differs between a stage's settings of two runs: `rule "tournament" -> "all_pairs"`."""
    found = list(_changed(then, now, ""))
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return ", ".join(found[:TOLD]) + more


def _changed(then: Any, now: Any, path: str) -> Iterator[str]:
    if then == now:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            inner = f"{path}.{key}" if path else str(key)  # pyright: ignore[reportUnknownArgumentType]
            yield from _changed(then.get(key), now.get(key), inner)  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):  # pyright: ignore[reportUnknownArgumentType]
        for place, (old, new) in enumerate(zip(then, now, strict=True)):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _changed(old, new, f"{path}[{place}]")
    elif _is_hash(then) or _is_hash(now):
        yield f"{path} is another one"
    else:
        yield f"{path} {_cut(then)} -> {_cut(now)}".strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def _cut(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
