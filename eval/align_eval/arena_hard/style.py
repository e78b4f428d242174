"""Style of an answer, and its control in the comparison of models.

Four features of a comparison, as Arena-Hard-Auto defines them: the relative difference of the
lengths, and the differences of the densities of headers, lists and bold text, each over
(sum + 1), all standardised. Source: lmarena/arena-hard-auto, commit 196f6b8, show_result.py and
utils/add_markdown_info.py; Li et al., "Does style matter?", LMSYS blog, 2024-08-28.

Differs from it: the coefficients are the maximum of the likelihood, not L-BFGS after 50 steps; the
score is that of the data itself with a seeded bootstrap around it, not the bootstrap's median; the
baseline's column is left out, which changes no probability; and there is no control by a part of
the features, where the original cuts off models instead of features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.errors import DataError
from align_eval.bradley_terry import Floats

FEATURES = ("length", "headers", "lists", "bold")
_CODE_BLOCK = re.compile("```([^`]*)```")
_HEADERS = {f"h{n}": re.compile(rf"^#{{{n}}}\s", re.MULTILINE) for n in range(1, 7)}
_LISTS = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


@dataclass(frozen=True)
class StyleCounts:
    """What a text looks like; code blocks count for the length only.

    Attributes:
        tokens: length, by the tokenizer that counted.
        headers: by level, h1 to h6.
        lists: ordered and unordered.
        bold: by mark.
    """

    tokens: int
    headers: Mapping[str, int]
    lists: Mapping[str, int]
    bold: Mapping[str, int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], where: str) -> StyleCounts:
        """From the metadata of an answer file.

        Raises:
            DataError: a count is missing.
        """
        try:
            return cls(
                metadata["token_len"],
                *(_counts(metadata[f"{name}_count"]) for name in ("header", "list", "bold")),
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{where}: the style metadata lacks {error}; it needs token_len, header_count, "
                "list_count and bold_count."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As the benchmark's answer files hold it."""
        return {
            "token_len": self.tokens,
            "header_count": dict(self.headers),
            "list_count": dict(self.lists),
            "bold_count": dict(self.bold),
        }

    def vector(self) -> list[float]:
        """[4]: length, headers, lists, bold."""
        groups = (self.headers, self.lists, self.bold)
        return [float(self.tokens), *(float(sum(group.values())) for group in groups)]


def _counts(value: Any) -> Mapping[str, int]:
    return {"all": value} if isinstance(value, int) else dict(value)


def style_counts(text: str, count_tokens: Callable[[str], int]) -> StyleCounts:
    """Counts of a text, with blocks of code left out of all but the length."""
    prose = text
    for block in _CODE_BLOCK.findall(text):
        # As the original: the content goes, wherever else it stands.
        prose = prose.replace(block, "")
    return StyleCounts(
        count_tokens(text),
        *(
            {name: len(pattern.findall(prose)) for name, pattern in group.items()}
            for group in (_HEADERS, _LISTS, _BOLD)
        ),
    )


def style_features(first: Sequence[StyleCounts], second: Sequence[StyleCounts]) -> Floats:
    """[N, 4] standardised differences, first minus second; a constant feature is 0 everywhere."""
    a = np.array([counts.vector() for counts in first])
    b = np.array([counts.vector() for counts in second])
    features = np.empty_like(a)
    features[:, 0] = (a[:, 0] - b[:, 0]) / np.maximum(a[:, 0] + b[:, 0], 1)
    dense_a = a[:, 1:] / np.maximum(a[:, :1], 1)
    dense_b = b[:, 1:] / np.maximum(b[:, :1], 1)
    features[:, 1:] = (dense_a - dense_b) / (dense_a + dense_b + 1)
    deviation = features.std(axis=0, ddof=1) if len(features) > 1 else np.zeros(4)
    varies = deviation > 1e-12
    return np.where(varies, (features - features.mean(axis=0)) / np.where(varies, deviation, 1), 0)
