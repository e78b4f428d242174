"""The text of a starter recipe: YAML with a reason behind every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from align.recipe.yaml_rules import Dumper

# Where comments begin, so that they stand in one column.
COLUMN = 44


@dataclass(frozen=True)
class Line:
    """One key of a section.

    Attributes:
        key: of the recipe.
        value: plain, as YAML holds it.
        why: in words; one line.
    """

    key: str
    value: Any
    why: str = ""


def text_of(heading: Sequence[str], sections: Mapping[str, Sequence[Line] | Line]) -> str:
    """A recipe's text.

    Args:
        heading: comment lines above all.
        sections: name -> its keys, or one value where it holds no keys; none leaves it out.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    for name, inside in sections.items():
        if isinstance(inside, Line):
            lines += ["", *_of(inside, "")]
        elif inside:
            lines += ["", f"{name}:", *(text for line in inside for text in _of(line, "  "))]
    return "\n".join(lines) + "\n"


def _of(line: Line, indent: str) -> list[str]:
    why = f"  # {line.why}" if line.why else ""
    if isinstance(line.value, list) and line.value and isinstance(line.value[0], Line):
        return [f"{indent}{line.key}:{why}", *(f"{indent}  - {_item(item)}" for item in line.value)]
    text = f"{indent}{line.key}: {_scalar(line.value)}"
    return [f"{text:<{COLUMN}}{why}".rstrip()]


def _item(item: Line) -> str:
    why = f"  # {item.why}" if item.why else ""
    return f"{_scalar(item.value)}{why}"


def _scalar(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(
        plain,
        Dumper=Dumper,
        default_flow_style=True,
        allow_unicode=True,
        width=10**6,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()
