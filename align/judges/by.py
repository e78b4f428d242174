"""`by: ...`: the judge that a word names, and nodes that have its keys beside their own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from align import registry
from align.errors import RecipeError
from align.judges.base import JudgeNode
from align.judges.functions import judge_of
from align.node import Node, joined


class JudgedBy(Node):
    """A node whose `by` names a judge, and which has that judge's keys beside its own."""

    by: Any
    """Who judges."""

    @classmethod
    def class_for(cls, written: Mapping[str, Any]) -> type[Node]:
        """This class with the keys of the judge that `by` names.

        Raises:
            RecipeError: there is no such judge.
        """
        name: Any = written.get("by")
        if issubclass(cls, JudgeNode) or not isinstance(name, str):
            return cls
        return joined(cls, judge_class(name))

    @classmethod
    def classes(cls) -> Mapping[str, type[Node]]:
        """The judges that need no path."""
        return {name: judge_class(name) for name in registry.names("judge")}


def judge_class(name: str) -> type[JudgeNode]:
    """The node of a judge, or of a reward, by its name.

    Raises:
        RecipeError: there is none.
    """
    kind = "reward" if name in registry.names("reward") else "judge"
    found = registry.find(kind, name)
    value = found.value
    if not isinstance(value, type) and callable(value):
        return _node_of(value, kind, name, found.code)
    if not (isinstance(value, type) and issubclass(value, JudgeNode)):
        raise RecipeError(
            f"The judge {name} ({found.origin}) is no function, and no subclass of "
            "align.judges.base.JudgeNode. See docs/extending.md for what a recipe can name."
        )
    named: Any = registry.named(value, kind, name, found.code)
    return named


@functools.cache
def _node_of(function: Any, kind: Any, name: str, code: str | None) -> type[JudgeNode]:
    # One class for one function, or a recipe that names it would never equal itself.
    named: Any = registry.named(judge_of(function, name), kind, name, code)
    return named
