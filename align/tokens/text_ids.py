"""Ids of texts as they stand, and the texts of ids; no special token is added."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A text may not begin like the anchor it is encoded behind, so there are three unlike ones.
_ANCHORS = ("\n", "a", ".")


class TextIds:
    """A tokenizer between texts, pieces of them, and ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Ids of `text` as the beginning of a text."""
        # verbose=False: transformers otherwise warns about rows over model_max_length, which are
        # counted and ruled by data.max_length here.
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return cast(list[int], ids)

    def continued(self, text: str) -> list[int]:
        """Ids of `text` as it stands in the middle of a longer text.

        Encoding it alone is not the same: SentencePiece-like tokenizers put a space before the
        first word of a text. So it is encoded behind an anchor, whose ids are taken off again.
        """
        if not text:
            return []
        fallback: list[int] | None = None
        for anchor in _ANCHORS:
            before, both = self.ids(anchor), self.ids(anchor + text)
            # An unknown anchor would swallow an unknown first word: both are one unk.
            if not before or self._tokenizer.unk_token_id in before:
                continue
            if both[: len(before)] != before:
                continue
            ids = both[len(before) :]
            if self._tokenizer.decode(both, clean_up_tokenization_spaces=False) == anchor + text:
                return ids
            fallback = ids if fallback is None else fallback
        return self.ids(text) if fallback is None else fallback

    def pieces(self, text: str, mark: str) -> list[int]:
        """Ids of `text` without its marks, over each of which no token reaches."""
        first, *others = text.split(mark)
        return self.ids(first) + [i for piece in others for i in self.continued(piece)]

    @cached_property
    def prefix(self) -> list[int]:
        """Ids that the tokenizer puts before plain text: its BOS, or nothing."""
        bare = self.ids("a")
        dressed = cast(list[int], self._tokenizer("a", verbose=False)["input_ids"])
        at = next(
            (n for n in range(len(dressed)) if dressed[n : n + len(bare)] == bare), len(dressed)
        )
        return dressed[:at]

    @cached_property
    def vocabulary(self) -> frozenset[int]:
        """Every id that the tokenizer knows."""
        return frozenset(self._tokenizer.get_vocab().values())

    def spelled(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`.

        Decoded alone they can lose a space: SentencePiece-like tokenizers take it off the first
        word of a text.
        """
        before, both = self._decoded([behind]), self._decoded([behind, *ids])
        return both[len(before) :] if both.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return cast(str, self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
