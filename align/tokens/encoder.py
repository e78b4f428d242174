"""Token ids of a preference pair: one prompt, two completions, and nothing a row's text can forge.

What every `TokenizedPair` keeps:

- The prompt's ids are exactly what generation sees: `apply_chat_template(..., add_generation_prompt
  =True)` for messages, `tokenizer(prompt)` without its suffix for plain text. Both completions
  continue these ids, so the prompt is a prefix of both by construction. Where the tokenizer would
  merge across the border ("the qui" + "ck"), the completion is encoded on its own and the row is
  counted as `boundary_merge`.
- The beginning-of-sequence token stands where the template (messages) or the tokenizer (plain text)
  puts it, once.
- A completion ends with one end token and nothing after it: the first control token that the
  template writes after the content, or `eos_token` for plain text. What templates write behind it
  (the newline after Qwen's `<|im_end|>`) is cut, since generation has stopped there. A completion
  that `cut_completion` shortened has no end token: the text did not end there. Neither has a side
  whose row says that it is a beginning (`chosen_ends`, `rejected_ends` False).
- The spelling of a control token inside content stays text. It is cut after its first character
  and the pieces are encoded apart, so no token can span the whole. Control tokens are the special
  tokens of the tokenizer and the added tokens that a rendered prompt is built from.
- Ids that a row brings along (`prompt_ids`, `chosen_ids`, `rejected_ids`) are used as they are,
  after a check that generation would see the same prompt and that they spell the row's texts.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from align.data.messages import ChatRole, Text
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import RowProblem
from align.data.row_policy import RowPolicy
from align.errors import DataError
from align.tokens.chat_template import ChatTemplate
from align.tokens.control_tokens import ControlTokens
from align.tokens.cut import cut_pair
from align.tokens.given_ids import GivenIds
from align.tokens.sides import side_ends, unused_character, with_sides
from align.tokens.template_check import check_template
from align.tokens.text_ids import TextIds
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Answers for a prompt whose own ids are all that is asked for.
_STAND_INS = ("0", "1")


def check_completion_ids(
    prompt_ids: Sequence[int], ids: Sequence[int], at: str, *, ends: bool
) -> None:
    """Raise where the completion `at` has no token that could be learnt, the end token aside.

    Args:
        prompt_ids: of its prompt; without one, nothing predicts the first token of `ids`.
        ids: of the completion.
        at: what errors call it.
        ends: whether the last of `ids` is an end token.
    """
    if len(ids) < 1 + ends:
        raise RowProblem("empty_completion", at, "no token but the end token")
    if not prompt_ids and len(ids) < 2:
        raise RowProblem("empty_completion", at, "one token and no prompt to predict it from")


class Encoder:
    """A tokenizer with what must be known about it once: control tokens, prefix, end token.

    Args:
        tokenizer: of a text model.
        policy: what to do with rows that cannot be used as they are.
        template: the tokenizer's chat template, where it renders other than plain messages.
    """

    reads_images = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy: RowPolicy,
        template: ChatTemplate | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self._template = ChatTemplate(tokenizer) if template is None else template
        self._texts = TextIds(tokenizer)
        split = policy.on_control_tokens == "split"
        self._keeps_control = policy.on_control_tokens == "keep"
        self._control = ControlTokens(tokenizer, self._template, self._texts, split=split)
        self._given_ids = GivenIds(tokenizer, self._texts, self._control)
        self._template_checked = False

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that content may not forge."""
        return self._control.ids

    @property
    def spelling(self) -> re.Pattern[str]:
        """Matches the text of any control token."""
        return self._control.spelling

    def continued(self, text: str) -> list[int]:
        """Ids of `text` as it stands in the middle of a longer text."""
        return self._texts.continued(text)

    def spelled(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`."""
        return self._texts.spelled(ids, behind)

    def encode(self, pair: PreferencePair) -> TokenizedPair:
        """Ids of `pair` before any cut.

        Raises:
            RowProblem: the row cannot be used.
            DataError: no such row can be used with this tokenizer.
        """
        check_pair(pair, self.policy.on_empty)
        if pair.images is not None and not self.reads_images:
            detail = "this model has a tokenizer and no processor of pictures"
            raise RowProblem("unsupported_content", "images", detail)
        made = self._of_texts(pair) if pair.prompt_ids is None else self._given(pair)
        for at, ids in (("chosen", made.chosen_ids), ("rejected", made.rejected_ids)):
            check_completion_ids(made.prompt_ids, ids, at, ends=side_ends(pair, at))
            weight = pair.chosen_token_weight if at == "chosen" else pair.rejected_token_weight
            if weight is not None and len(weight) != len(ids):
                counted = "end token included" if side_ends(pair, at) else "with no end token"
                raise RowProblem(
                    "bad_score",
                    f"{at}_token_weight",
                    f"{len(weight)} weights for {len(ids)} completion tokens, {counted}",
                )
        return made

    def prompt_ids(self, pair: PreferencePair) -> tuple[list[int], tuple[str, ...]]:
        """Ids of the prompt of `pair`, whose answers are not looked at, and what was done to it."""
        check_pair(with_sides(pair, *_STAND_INS), self.policy.on_empty)
        return self._prompt_ids(pair)

    def _prompt_ids(self, pair: PreferencePair) -> tuple[list[int], tuple[str, ...]]:
        made = self._of_texts(with_sides(pair, *_STAND_INS))
        return made.prompt_ids, tuple(note for note in made.notes if note != "boundary_merge")

    def cut(self, tokenized: TokenizedPair) -> TokenizedPair:
        """`tokenized` within `policy.max_length`, and with two different completions."""
        bos = cast("int | None", self.tokenizer.bos_token_id)
        return cut_pair(tokenized, self.policy, bos)

    def _of_texts(self, pair: PreferencePair) -> TokenizedPair:
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        whole = {at for at in sides if side_ends(pair, at)}
        prompt_ids, completions, notes = self.encode_sides(pair.prompt, sides, whole)
        return TokenizedPair(
            prompt_ids, completions["chosen"], completions["rejected"], pair, notes
        )

    def encode_sides(
        self, prompt: Text, sides: Mapping[str, Text], whole: Container[str]
    ) -> tuple[list[int], dict[str, list[int]], tuple[str, ...]]:
        """Ids of a prompt and of any number of completions, before any cut.

        Args:
            prompt: what each completion continues; checked (`align.data.texts`), as they are.
            sides: the completions, each by what errors call it.
            whole: names of those that end, and get an end token.

        Returns:
            Ids of the prompt, those of each completion, and what was done to the row.

        Raises:
            RowProblem: the row cannot be used.
            DataError: no such row can be used with this tokenizer.
        """
        notes: set[str] = set()
        # The mark must be a character that no content of this row holds.
        mark = unused_character((prompt, *sides.values()))
        marked = {at: self._marked(side, at, mark, notes) for at, side in sides.items()}
        encode = self._encode_plain if isinstance(prompt, str) else self._encode_chat
        prompt = self._marked(prompt, "prompt", mark, notes)
        prompt_ids, completions = encode(prompt, marked, whole, mark, notes)
        return prompt_ids, completions, tuple(sorted(notes))

    def _marked(self, text: Text, at: str, mark: str, notes: set[str]) -> Text:
        return text if self._keeps_control else self._control.marked(text, at, mark, notes)

    def _has_more(self, ids: Sequence[int], than: int) -> bool:
        """Whether content has made a control token of its own."""
        return not self._keeps_control and self._control.count(ids) > than

    def _given(self, pair: PreferencePair) -> TokenizedPair:
        """The ids that `pair` brings along, if they are those of its texts."""
        assert pair.prompt_ids is not None
        assert pair.chosen_ids is not None
        assert pair.rejected_ids is not None
        prompt_ids, notes = self._prompt_ids(pair)
        if prompt_ids != list(pair.prompt_ids):
            raise RowProblem(
                "template_mismatch",
                "prompt_ids",
                f"{len(pair.prompt_ids)} ids, and this tokenizer and template make "
                f"{len(prompt_ids)} others of the prompt",
            )
        for at, text, ids in (
            ("chosen", pair.chosen, pair.chosen_ids),
            ("rejected", pair.rejected, pair.rejected_ids),
        ):
            if self.policy.on_control_tokens not in ("split", "keep"):
                self._control.marked(text, at, "", set())
            self._given_ids.check(pair, at, ids, self._own_ids)
        return TokenizedPair(
            prompt_ids,
            list(pair.chosen_ids),
            list(pair.rejected_ids),
            pair,
            tuple(sorted({*notes, "given_ids"})),
        )

    def _own_ids(self, pair: PreferencePair, at: str) -> list[int] | None:
        """What the text of the side `at` is encoded as; None where it cannot be."""
        try:
            made = self._of_texts(pair)
        except RowProblem:
            return None
        return made.chosen_ids if at == "chosen" else made.rejected_ids

    def _encode_chat(
        self,
        prompt: Text,
        sides: Mapping[str, Text],
        whole: Container[str],
        mark: str,
        notes: set[str],
    ) -> tuple[list[int], dict[str, list[int]]]:
        assert not isinstance(prompt, str)
        if not self._template_checked:
            check_template(self.tokenizer, self._template, self._texts, self._control)
            self._template_checked = True
        roles: tuple[ChatRole, ...] = tuple(message.role for message in prompt)
        prompt_text = self._template.render(prompt, "generation")
        if "control_tokens_split" in notes:
            self._template.check_mark_survives(prompt, prompt_text, "generation", mark)
        prompt_ids = self._texts.pieces(prompt_text, mark)
        if self._has_more(prompt_ids, self._control.written(roles, generation=True)):
            raise RowProblem("control_tokens", "prompt", "its text normalises to a control token")
        own = self._control.written(
            (*roles, "assistant"), generation=False
        ) - self._control.written(roles, generation=True)
        completions: dict[str, list[int]] = {}
        for at, side in sides.items():
            assert not isinstance(side, str)
            full_text = self._template.render((*prompt, *side), "conversation")
            if "control_tokens_split" in notes:
                self._template.check_mark_survives(
                    (*prompt, *side), full_text, "conversation", mark
                )
            if not full_text.startswith(prompt_text):
                raise RowProblem(
                    "template_mismatch",
                    at,
                    "the chat template renders the prompt in another way once it is answered",
                )
            if at not in whole:
                full_text = self._template.without_tail(full_text, at)
            ids = self._completion_ids(prompt_ids, prompt_text, full_text, mark, notes)
            if self._has_more(ids, own if at in whole else 0):
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            if at not in whole:
                completions[at] = ids
                continue
            ends = [n for n, i in enumerate(ids) if i in self.control_ids]
            if not ends:
                raise RowProblem(
                    "template_mismatch", at, "the chat template writes no end token behind it"
                )
            # Kept control tokens are content; the template's own is the last.
            completions[at] = ids[: ends[-1 if self._keeps_control else 0] + 1]
        return prompt_ids, completions

    def _encode_plain(
        self,
        prompt: Text,
        sides: Mapping[str, Text],
        whole: Container[str],
        mark: str,
        notes: set[str],
    ) -> tuple[list[int], dict[str, list[int]]]:
        assert isinstance(prompt, str)
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise DataError(
                "The rows are plain text and the tokenizer has no eos_token, so no completion "
                "could end: set tokenizer.eos_token, or choose a model whose tokenizer has one."
            )
        prompt_ids = self._texts.pieces(prompt, mark)
        if self._has_more(prompt_ids, 0):
            raise RowProblem("control_tokens", "prompt", "its text normalises to a control token")
        completions: dict[str, list[int]] = {}
        for at, side in sides.items():
            assert isinstance(side, str)
            ids = self._completion_ids(prompt_ids, prompt, prompt + side, mark, notes)
            if self._has_more(ids, 0):
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            # A text that was rendered beforehand may have its end and its beginning already.
            completions[at] = [*ids, end] if at in whole and ids[-1:] != [end] else ids
        prefix = self._texts.prefix
        if prefix and prompt_ids[: len(prefix)] == prefix:
            return prompt_ids, completions
        if not prefix and not prompt_ids:
            notes.add("no_prompt")
        return [*prefix, *prompt_ids], completions

    def _completion_ids(
        self, prompt_ids: list[int], prompt_text: str, full_text: str, mark: str, notes: set[str]
    ) -> list[int]:
        full_ids = self._texts.pieces(full_text, mark)
        if full_ids[: len(prompt_ids)] == prompt_ids:
            return full_ids[len(prompt_ids) :]
        notes.add("boundary_merge")
        tail = full_text[len(prompt_text) :].split(mark)
        return [i for piece in tail for i in self._texts.continued(piece)]
