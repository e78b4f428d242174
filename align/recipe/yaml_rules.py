"""YAML as recipes read and write it: the plain words of YAML 1.2, no aliases, no tags."""

# The stubs of PyYAML leave out most types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any, cast

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from align.errors import RecipeError


class Loader(yaml.SafeLoader):
    """PyYAML's composer with the plain words of YAML 1.2, and without aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: D102
        if self.check_event(yaml.AliasEvent):
            mark = cast("yaml.Event", self.peek_event()).start_mark
            raise ComposerError(None, None, "aliases are not read in recipes", mark)
        return super().compose_node(parent, index)


TAG = "tag:yaml.org,2002:"
# PyYAML's own rules are YAML 1.1's: 7e-7 is text, no and on are booleans, 1:30 is 90, 017 is 15.
_PLAIN_WORDS: Mapping[str, re.Pattern[str]] = {
    f"{TAG}{kind}": re.compile(rf"(?:{pattern})\Z")
    for kind, pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)",
        "float": r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    }.items()
}
for _tag, _words in _PLAIN_WORDS.items():
    Loader.add_implicit_resolver(_tag, _words, [*string.printable, ""])  # any first character


class Dumper(yaml.SafeDumper):
    """PyYAML's dumper, quoting what either version of YAML reads as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: D102
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    is_text = plain_tag(text) == f"{TAG}str"
    return dumper.represent_scalar(f"{TAG}str", text, style=None if is_text else "'")


Dumper.add_representer(str, _represent_text)


def plain_tag(text: str) -> str:
    """The tag of the value that an unquoted text stands for."""
    tags = (tag for tag, words in _PLAIN_WORDS.items() if words.match(text))
    return next(tags, f"{TAG}str")


def compose(text: str, source: str) -> yaml.Node | None:
    """The nodes of a text, None where it is empty.

    Raises:
        RecipeError: it is no YAML, or more of YAML than recipes use.
    """
    loader: Loader | None = None
    try:
        loader = Loader(text)
        return loader.get_single_node()
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise RecipeError(
            f"{source}:{line}: the control character U+{code:04X} stands here; delete it"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = error.problem or "cannot be read"
        if "\\t" in problem:
            problem = "a tab stands where YAML takes only spaces; indent with spaces"
        elif "single document" in str(error.context):
            problem = "a second document begins here; a recipe is one document, without `---`"
        elif error.context:
            problem = f"{error.context}, {problem}; mend the YAML here"
        else:
            problem = f"{problem}; mend the YAML here"
        raise RecipeError(f"{source}:{line}: {problem}") from None
    except RecursionError:
        raise RecipeError(f"{source}:1: nested too deep for a recipe; flatten it") from None
    finally:
        if loader is not None:
            loader.dispose()


def as_yaml(value: Any) -> str:
    """A value as it stands in YAML, cut to one short line."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 80 else f"{text[:77]}..."
