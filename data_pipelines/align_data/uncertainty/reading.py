"""A pair of responses as the estimator reads it: one text, or one conversation."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from align.data.messages import Message, Text
from align.data.problems import RowProblem
from align.judges.base import Comparison
from align.policies.prompting import Prompting
from align_data.uncertainty.settings import PLACE


def query_of(prompt: Text) -> str:
    """The prompt as one text: a lone user turn as it stands, else its turns with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)


class PairReader:
    """Token ids of a comparison, the first response in front of the second.

    Nothing is cut: where a text is too long, a cut would take the second response away and leave a
    verdict on the first alone.

    Args:
        tokenizer: of the estimator.
        template: with {query}, {first} and {second} in this order; None is the tokenizer's chat
            template, as if the query had been asked and answered twice.
        max_length: most tokens of the whole.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None, max_length: int
    ) -> None:
        self._prompting = Prompting(tokenizer)
        self._parts = None if template is None else PLACE.split(template)[::2]
        self._max_length = max_length

    def ids(self, item: Comparison) -> list[int]:
        """Ids of the whole, its end token included.

        Raises:
            RowProblem: it is too long, or cannot be used.
        """
        if self._parts is None:
            row = self._prompting.row(_asked_twice(item), item.second)
        else:
            opening, between, before_second, _ = self._parts
            text = f"{opening}{query_of(item.prompt)}{between}{item.first}{before_second}"
            row = self._prompting.row(text, item.second)
        ids = [*row.prompt_ids, *row.completion_ids]
        if len(ids) > self._max_length:
            raise RowProblem("too_long", "pair", f"{len(ids)} tokens, {self._max_length} fit")
        return ids


def _asked_twice(item: Comparison) -> tuple[Message, ...]:
    prompt = item.prompt
    asked = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    # A system turn may stand at the head of a conversation only.
    again = tuple(message for message in asked if message.role != "system")
    return (*asked, Message(role="assistant", content=item.first), *again)
