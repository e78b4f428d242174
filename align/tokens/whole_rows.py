"""Whole rows as a classifier reads them: a prompt with its answer, or with two answers.

A sequence classifier reads its score off the last token of a row that is no padding. So everything
that a chat template writes behind an answer belongs to the row, such as the newline after Qwen's
`<|im_end|>`, though a policy that stops at the end token never writes it.

    one answer     prompt, answer, what the template writes behind it
    two answers    prompt, first answer, the opening of another assistant turn, second answer, what
                   the template writes behind it

In plain text the answers follow each other, each with its end token. Every piece is token ids, so
nothing that an answer says can pass for the border between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from align.errors import DataError
from align.tokens.chat_template import ANSWER, ChatTemplate, Until, probe
from align.tokens.text_ids import TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONE_ANSWER, TWO_ANSWERS = "one-answer-1", "two-answers-1"
"""Names of the two layouts; a change of what stands in a row is another name."""


class WholeRows:
    """A tokenizer, and what its chat template writes behind an answer.

    Args:
        tokenizer: of a text model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._texts = TextIds(tokenizer)

    def one(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], *, chat: bool
    ) -> list[int]:
        """Ids of a prompt with its answer.

        Args:
            prompt_ids: as generation sees them.
            completion_ids: the end token included, where the answer has one.
            chat: whether they are messages.
        """
        return [*prompt_ids, *completion_ids, *self._tail(completion_ids, chat)]

    def two(
        self,
        prompt_ids: Sequence[int],
        first_ids: Sequence[int],
        second_ids: Sequence[int],
        *,
        chat: bool,
    ) -> list[int]:
        """Ids of a prompt with two answers, one behind the other; arguments as for `one`."""
        end, opening, _ = self._chat if chat else (self._plain_end, [], [])
        # An answer that was cut has no end token of its own.
        border = [] if first_ids[-1] == end else [end]
        tail = self._tail(second_ids, chat)
        return [*prompt_ids, *first_ids, *border, *opening, *second_ids, *tail]

    def _tail(self, completion_ids: Sequence[int], chat: bool) -> list[int]:
        if not chat:
            return []
        end, _, tail = self._chat
        return tail if completion_ids[-1] == end else []

    @property
    def _plain_end(self) -> int:
        end = self._tokenizer.eos_token_id
        assert isinstance(end, int), "plain rows without an end token are refused by the encoder"
        return end

    @cached_property
    def _chat(self) -> tuple[int, list[int], list[int]]:
        """An answer's end token; behind it the opening of one more answer, and the template's tail.

        Raises:
            DataError: the template writes no end token behind an answer.
        """
        known = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        behind = {
            until: self._texts.ids(self._rendered(until).rpartition(ANSWER)[2])
            for until in ("generation", "conversation")
        }
        tail = behind["conversation"]
        place = next((n for n, i in enumerate(tail) if i in known), None)
        if place is None or tail[: place + 1] != behind["generation"][: place + 1]:
            raise DataError(
                "The tokenizer's chat template writes no end token behind an answer, so answers "
                "could not be told apart: choose a model whose template has one."
            )
        return tail[place], behind["generation"][place + 1 :], tail[place + 1 :]

    def _rendered(self, until: Until) -> str:
        turn = {"role": "assistant", "content": ANSWER}
        question = [message.model_dump() for message in probe(("user",))]
        return self._template.rendered([*question, turn], until)
