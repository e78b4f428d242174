"""The tokens that content may not forge, and how their spelling in content stays text.

Control tokens are the special tokens of the tokenizer and the added tokens that a rendered prompt
is built from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from align.data.messages import ChatRole, Message, Text
from align.data.problems import RowProblem
from align.tokens.chat_template import ChatTemplate, probe
from align.tokens.text_ids import TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTokens:
    """The control tokens of a tokenizer and its chat template.

    Args:
        tokenizer: whose.
        template: its chat template.
        texts: its ids.
        split: whether content may spell one, which is then split; else that is a problem.

    Attributes:
        ids: of all of them.
        spelling: matches the text of any of them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        texts: TextIds,
        *,
        split: bool,
    ) -> None:
        self._unk = tokenizer.unk_token_id
        self._template = template
        self._texts = texts
        self._split = split
        self._written: dict[tuple[tuple[ChatRole, ...], bool, int], int] = {}
        self._can_be_spelled: dict[str, bool] = {}
        control = _control_tokens(tokenizer, template)
        spelled = sorted({text for text in control.values() if text}, key=len, reverse=True)
        self.spelling = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        # An unknown character becomes unk: that is no control token, unless unk doubles as one.
        ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.ids = frozenset(i for i in control if i != self._unk or i in ends)

    def count(self, ids: Iterable[int]) -> int:
        """How many of `ids` are control tokens."""
        return sum(i in self.ids for i in ids)

    def written(self, roles: tuple[ChatRole, ...], *, generation: bool) -> int:
        """Control tokens that the template itself writes for a conversation of these roles."""
        # Each picture has a control token of its own.
        key = (roles, generation, self._template.shown)
        if key not in self._written:
            text = self._template.render(
                probe(roles), "generation" if generation else "conversation"
            )
            self._written[key] = self.count(self._texts.ids(text))
        return self._written[key]

    def marked(self, text: Text, at: str, mark: str, notes: set[str]) -> Text:
        """`text` with `mark` after the first character of each control token it spells.

        Raises:
            RowProblem: it spells one that may not or cannot be split.
        """
        if not isinstance(text, str):
            return tuple(
                Message(
                    role=message.role,
                    content=cast(
                        str, self.marked(message.content, f"{at}[{i}].content", mark, notes)
                    ),
                )
                for i, message in enumerate(text)
            )
        pieces: list[str] = []
        start = 0
        while found := self.spelling.search(text, start):
            if not self._split:
                raise RowProblem(
                    "control_tokens", at, f"spells {found[0]!r} at character {found.start() + 1}"
                )
            if not self._can_spell(found[0]):
                raise RowProblem(
                    "control_tokens", at, f"no ordinary tokens of this tokenizer spell {found[0]!r}"
                )
            # The search goes on inside the match: control tokens may overlap.
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
            notes.add("control_tokens_split")
        return mark.join([*pieces, text[start:]])

    def _can_spell(self, control: str) -> bool:
        if control not in self._can_be_spelled:
            ids = self._texts.ids(control[:1]) + self._texts.continued(control[1:])
            self._can_be_spelled[control] = len(control) > 1 and not any(
                i == self._unk or i in self.ids for i in ids
            )
        return self._can_be_spelled[control]


def _control_tokens(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> dict[int, str]:
    """Id and spelling of every control token."""
    added = tokenizer.added_tokens_decoder
    control = {i: token.content for i, token in added.items() if token.special}
    for token in tokenizer.all_special_tokens:
        control[cast(int, tokenizer.convert_tokens_to_ids(token))] = str(token)
    if tokenizer.chat_template is not None:
        # Gemma's first releases hold <start_of_turn> as an ordinary added token.
        prompts: tuple[tuple[ChatRole, ...], ...] = (("user",), ("user", "assistant", "user"))
        for roles in prompts:
            try:
                text = template.render(probe(roles), "generation")
            except RowProblem:
                continue
            for i, token in added.items():
                if token.content in text and not token.content.isspace():
                    control[i] = token.content
    return control
