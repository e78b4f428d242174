"""All kinds by name: from a row of the public data, or from a mapping with `kind`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from align.errors import DataError, RecipeError
from align.instructions.base import Instruction
from align.instructions.case import CapitalWordFrequency, EnglishCapital, EnglishLowercase, NoComma
from align.instructions.combination import RepeatPrompt, TwoResponses
from align.instructions.content import NumberPlaceholders, Postscript
from align.instructions.ends import EndChecker, Quotation
from align.instructions.formats import (
    ConstrainedResponse,
    JsonFormat,
    MultipleSections,
    NumberBulletLists,
    NumberHighlightedSections,
    Title,
)
from align.instructions.keywords import Existence, ForbiddenWords, Frequency, LetterFrequency
from align.instructions.language import ResponseLanguage
from align.instructions.lengths import (
    NthParagraphFirstWord,
    NumberParagraphs,
    NumberSentences,
    NumberWords,
)
from align.nearest import did_you_mean

KINDS: Mapping[str, type[Instruction]] = MappingProxyType(
    {
        kind.model_fields["kind"].default: kind
        for kind in (
            Existence,
            Frequency,
            ForbiddenWords,
            LetterFrequency,
            ResponseLanguage,
            NumberSentences,
            NumberParagraphs,
            NumberWords,
            NthParagraphFirstWord,
            NumberPlaceholders,
            Postscript,
            NumberBulletLists,
            ConstrainedResponse,
            NumberHighlightedSections,
            MultipleSections,
            JsonFormat,
            Title,
            TwoResponses,
            RepeatPrompt,
            EndChecker,
            Quotation,
            CapitalWordFrequency,
            EnglishCapital,
            EnglishLowercase,
            NoComma,
        )
    }
)
"""Name -> class; the 25 kinds of the paper."""


def constraint_from(node: Mapping[str, Any] | Instruction) -> Instruction:
    """The instruction of a mapping such as `{"kind": "keywords:existence", "keywords": ["a"]}`.

    Raises:
        RecipeError: there is no such kind, or its settings do not fit.
    """
    if isinstance(node, Instruction):
        return node
    kind = node.get("kind")
    try:
        return _made(str(kind), {name: node[name] for name in node if name != "kind"})
    except ValueError as error:
        raise RecipeError(f"instruction: {error}") from error


def from_public(kind: str, kwargs: Mapping[str, Any]) -> Instruction:
    """The instruction of one entry of `instruction_id_list` and `kwargs`; nulls are left out.

    Raises:
        DataError: there is no such kind, or its settings do not fit.
    """
    try:
        return _made(kind, {name: value for name, value in kwargs.items() if value is not None})
    except ValueError as error:
        raise DataError(f"instruction {error}") from error


def row_instructions(columns: Mapping[str, Any]) -> tuple[Instruction, ...]:
    """The instructions of a row with the public columns `instruction_id_list` and `kwargs`.

    Raises:
        DataError: a column is missing, they differ in length, or an entry does not fit.
    """
    kinds: Any = columns.get("instruction_id_list")
    settings: Any = columns.get("kwargs")
    if not (_is_list(kinds) and _is_list(settings)) or len(kinds) != len(settings) or not kinds:
        raise DataError(
            "instruction_id_list and kwargs must be lists of one length, with a kind and a mapping "
            'of its settings for each instruction, such as ["punctuation:no_comma"] and [{}].'
        )
    return tuple(
        from_public(kind, given or {}) for kind, given in zip(kinds, settings, strict=True)
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _made(kind: str, settings: Mapping[str, Any]) -> Instruction:
    if kind not in KINDS:
        raise ValueError(
            f"{kind!r} is no kind{did_you_mean(kind, list(KINDS)) or '.'} Known are "
            f"{', '.join(KINDS)}."
        )
    try:
        return KINDS[kind](**settings)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise ValueError(f"{kind}: {wrong}. Mend these settings.") from error
