"""Ids that a row brings along: used as they are, where they are those of its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.tokens.control_tokens import ControlTokens
from align.tokens.sides import side_ends
from align.tokens.text_ids import TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GivenIds:
    """The check of given ids.

    Args:
        tokenizer: that should read them as the row's texts.
        texts: its ids.
        control: its control tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: TextIds, control: ControlTokens
    ) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._control = control

    def check(
        self,
        pair: PreferencePair,
        at: str,
        ids: Sequence[int],
        own_ids: Callable[[PreferencePair, str], Sequence[int] | None],
    ) -> None:
        """Raise where `ids` are not what this tokenizer reads as the side `at` of `pair`.

        Args:
            pair: whose prompt has the ids that it says.
            at: chosen or rejected.
            ids: of that side.
            own_ids: what the tokenizer makes of a side's text; None where it cannot.

        Raises:
            RowProblem: `template_mismatch`.
        """

        def refuse(detail: str) -> RowProblem:
            return RowProblem("template_mismatch", f"{at}_ids", detail)

        unknown = next((i for i in ids if i not in self._texts.vocabulary), None)
        if unknown is not None:
            raise refuse(f"id {unknown} is not in this tokenizer's vocabulary")
        ends = side_ends(pair, at)
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if ends and (not ids or ids[-1] not in self._control.ids or ids[-1] == bos != eos):
            raise refuse(f"the last one is no end token, and {at}_ends is not false")
        spelled = list(ids[:-1] if ends else ids)
        if held := next((n for n, i in enumerate(spelled, 1) if i in self._control.ids), None):
            where = f"id {held} of {len(ids)} is a control token"
            raise refuse(where if ends else f"{where}, and {at}_ends is false")
        text = pair.chosen if at == "chosen" else pair.rejected
        content = text if isinstance(text, str) else text[0].content
        assert pair.prompt_ids is not None
        # Outer white space is the template's: some trim an answer, some write a space before it.
        if self._texts.spelled(spelled, pair.prompt_ids[-1]).strip() == content.strip():
            return
        # A text with characters that the tokenizer does not know cannot be read back.
        own = own_ids(pair, at)
        if own is None or list(ids) != list(own):
            raise refuse(f"{len(ids)} ids that this tokenizer does not read as the text of {at}")
