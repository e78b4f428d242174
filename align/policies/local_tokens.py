"""The part of every writer that needs its tokenizer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.data.messages import Text
from align.policies.prompting import Prompting
from align.policies.writer import Stem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LocalTokens:
    """Between texts and ids, exactly as training encodes them.

    Args:
        tokenizer: of the model.
        ends: end tokens of the model's generation config.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: int | Sequence[int] | None
    ) -> None:
        self.tokenizer = tokenizer
        self._prompting = Prompting(tokenizer)
        self._end_ids, self._control = self._prompting.end_and_control_ids(ends)

    @property
    def end_ids(self) -> frozenset[int]:
        """By the chat template, the tokenizer, and the model's generation config."""
        return self._end_ids

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        """What training sees before an answer to `prompt`.

        Raises:
            RowProblem: the prompt cannot be used.
        """
        return self._prompting.prompt_ids(prompt)

    def answer_ids(self, prompt: Text, answer: str) -> tuple[int, ...]:
        """A whole answer to `prompt` as training encodes it, the end token included.

        Raises:
            RowProblem: prompt or answer cannot be used.
        """
        return tuple(self._prompting.row(prompt, answer).completion_ids)

    def text(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`; end tokens are left out."""
        return self._prompting.text([i for i in ids if i not in self._end_ids], behind)


def ids_of(stem: Stem) -> tuple[int, ...]:
    """Prompt and prefix.

    Raises:
        ValueError: there is no token, so nothing can be continued.
    """
    if not stem.prompt_ids and not stem.prefix_ids:
        raise ValueError("A stem has no token, so there is nothing to continue.")
    return (*stem.prompt_ids, *stem.prefix_ids)


def check_room(room: int, n: int, wanted: int) -> None:
    """Raise where a request cannot be met.

    Raises:
        ValueError: it asks for no sample, or for more tokens than there is room for.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, not {n}.")
    if wanted > room:
        raise ValueError(
            f"A stem leaves room for {max(room, 0)} tokens, and {wanted} were asked for."
        )
