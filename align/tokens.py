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
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import jinja2

from align.errors import DataError
from align.records import (
    DroppedRow,
    Message,
    PreferencePair,
    Role,
    RowPolicy,
    RowProblem,
    RowReport,
    Text,
    check_pair,
)

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

OPTIONAL_COLUMNS = (
    "chosen_score",
    "rejected_score",
    "preference",
    "margin",
    "chosen_token_weight",
    "rejected_token_weight",
    "group_id",
)

# A text may not begin like the anchor it is encoded behind, so there are three unlike ones.
_ANCHORS = ("\n", "a", ".")
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF900)]
_IN_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")

# Answers for a prompt whose own ids are all that is asked for.
_STAND_INS = ("0", "1")


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair.

    Attributes:
        prompt_ids: shared by both sides.
        chosen_ids: the completion's ids, the end token included where it ends.
        rejected_ids: the same for the other side.
        pair: the row they come from.
        notes: what was done to the row (`boundary_merge`, `control_tokens_split`, `cut_prompt`,
            `cut_completion`, `given_ids`).
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    pair: PreferencePair
    notes: tuple[str, ...] = ()


class Encoder:
    """A tokenizer with what must be known about it once: control tokens, prefix, end token."""

    reads_images = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self._written: dict[tuple[tuple[Role, ...], bool], int] = {}
        self._spelling: dict[str, bool] = {}
        self._vocabulary: frozenset[int] | None = None
        self._tail: str | None = None
        self._prefix_ids: list[int] | None = None
        self._template_checked = False
        self._find_control_tokens()

    def _find_control_tokens(self) -> None:
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder
        control = {i: token.content for i, token in added.items() if token.special}
        for token in tokenizer.all_special_tokens:
            control[cast(int, tokenizer.convert_tokens_to_ids(token))] = str(token)
        if tokenizer.chat_template is not None:
            # Gemma's first releases hold <start_of_turn> as an ordinary added token.
            prompts: tuple[tuple[Role, ...], ...] = (("user",), ("user", "assistant", "user"))
            for roles in prompts:
                try:
                    text = self._render(_probe(roles), "generation")
                except RowProblem:
                    continue
                for i, token in added.items():
                    if token.content in text and not token.content.isspace():
                        control[i] = token.content
        spelled = sorted({text for text in control.values() if text}, key=len, reverse=True)
        self._control_text = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        # An unknown character becomes unk: that is no control token, unless unk doubles as one.
        unk, ends = tokenizer.unk_token_id, (tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.control_ids = frozenset(i for i in control if i != unk or i in ends)

    def encode(self, pair: PreferencePair) -> TokenizedPair:
        """Ids of `pair` before any cut."""
        check_pair(pair)
        if pair.images is not None and not self.reads_images:
            detail = "this model has a tokenizer and no processor of pictures"
            raise RowProblem("unsupported_content", "images", detail)
        made = self._of_texts(pair) if pair.prompt_ids is None else self._given(pair)
        for at, ids in (("chosen", made.chosen_ids), ("rejected", made.rejected_ids)):
            if len(ids) < 1 + _ends(pair, at):
                raise RowProblem("empty_completion", at, "no token but the end token")
            weight = pair.chosen_token_weight if at == "chosen" else pair.rejected_token_weight
            if weight is not None and len(weight) != len(ids):
                counted = "end token included" if _ends(pair, at) else "with no end token"
                raise RowProblem(
                    "bad_score",
                    f"{at}_token_weight",
                    f"{len(weight)} weights for {len(ids)} completion tokens, {counted}",
                )
        return made

    def prompt_ids(self, pair: PreferencePair) -> tuple[list[int], tuple[str, ...]]:
        """Ids of the prompt of `pair`, whose answers are not looked at, and what was done to it."""
        bare = _with_sides(pair, *_STAND_INS)
        check_pair(bare)
        made = self._of_texts(bare)
        return made.prompt_ids, tuple(note for note in made.notes if note != "boundary_merge")

    def _of_texts(self, pair: PreferencePair) -> TokenizedPair:
        notes: set[str] = set()
        # The mark must be a character that no content of this row holds.
        held = {c for text in _contents(pair) for c in _IN_PRIVATE_USE.findall(text)}
        mark = next((c for c in _PRIVATE_USE if c not in held), "")
        if not mark:
            raise RowProblem("bad_unicode", "prompt", "every private-use character is in use")
        prompt = self._marked(pair.prompt, "prompt", mark, notes)
        sides = {
            at: self._marked(side, at, mark, notes)
            for at, side in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        encode = self._encode_chat if pair.is_conversational else self._encode_plain
        whole = {at for at in sides if _ends(pair, at)}
        prompt_ids, completions = encode(prompt, sides, whole, mark, notes)
        return TokenizedPair(
            prompt_ids, completions["chosen"], completions["rejected"], pair, tuple(sorted(notes))
        )

    def _given(self, pair: PreferencePair) -> TokenizedPair:
        """The ids that `pair` brings along, if they are those of its texts."""
        assert pair.prompt_ids is not None
        assert pair.chosen_ids is not None
        assert pair.rejected_ids is not None
        prompt_ids, notes = self.prompt_ids(pair)
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
            if self.policy.on_control_tokens != "split":
                self._marked(text, at, "", set())
            self._check_given(pair, at, ids)
        return TokenizedPair(
            prompt_ids,
            list(pair.chosen_ids),
            list(pair.rejected_ids),
            pair,
            tuple(sorted({*notes, "given_ids"})),
        )

    def _check_given(self, pair: PreferencePair, at: str, ids: Sequence[int]) -> None:
        """Raise where `ids` are not what this tokenizer reads as the side `at` of `pair`."""

        def refuse(detail: str) -> RowProblem:
            return RowProblem("template_mismatch", f"{at}_ids", detail)

        if self._vocabulary is None:
            self._vocabulary = frozenset(self.tokenizer.get_vocab().values())
        unknown = next((i for i in ids if i not in self._vocabulary), None)
        if unknown is not None:
            raise refuse(f"id {unknown} is not in this tokenizer's vocabulary")
        ends = _ends(pair, at)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if ends and (not ids or ids[-1] not in self.control_ids or ids[-1] == bos != eos):
            raise refuse(f"the last one is no end token, and {at}_ends is not false")
        spelled = list(ids[:-1] if ends else ids)
        if held := next((n for n, i in enumerate(spelled, 1) if i in self.control_ids), None):
            where = f"id {held} of {len(ids)} is a control token"
            raise refuse(where if ends else f"{where}, and {at}_ends is false")
        text = pair.chosen if at == "chosen" else pair.rejected
        content = text if isinstance(text, str) else text[0].content
        assert pair.prompt_ids is not None
        # Outer white space is the template's: some trim an answer, some write a space before it.
        if self.spelled(spelled, pair.prompt_ids[-1]).strip() == content.strip():
            return
        # A text with characters that the tokenizer does not know cannot be read back.
        if list(ids) != self._own_ids(pair, at):
            raise refuse(f"{len(ids)} ids that this tokenizer does not read as the text of {at}")

    def _own_ids(self, pair: PreferencePair, at: str) -> list[int] | None:
        """What the text of the side `at` is encoded as; None where it cannot be."""
        try:
            made = self._of_texts(pair)
        except RowProblem:
            return None
        return made.chosen_ids if at == "chosen" else made.rejected_ids

    def spelled(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`.

        Decoded alone they can lose a space: SentencePiece-like tokenizers take it off the first
        word of a text.
        """
        before, both = self._decoded([behind]), self._decoded([behind, *ids])
        return both[len(before) :] if both.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _marked(self, text: Text, at: str, mark: str, notes: set[str]) -> Text:
        """`text` with `mark` after the first character of each control token it spells."""
        if not isinstance(text, str):
            return tuple(
                Message(
                    role=message.role,
                    content=cast(
                        str, self._marked(message.content, f"{at}[{i}].content", mark, notes)
                    ),
                )
                for i, message in enumerate(text)
            )
        pieces: list[str] = []
        start = 0
        while found := self._control_text.search(text, start):
            if self.policy.on_control_tokens != "split":
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
        if control not in self._spelling:
            ids = self._ids(control[:1]) + self.continued(control[1:])
            unk = self.tokenizer.unk_token_id
            self._spelling[control] = len(control) > 1 and not any(
                i == unk or i in self.control_ids for i in ids
            )
        return self._spelling[control]

    def _encode_chat(
        self,
        prompt: Text,
        sides: Mapping[str, Text],
        whole: Container[str],
        mark: str,
        notes: set[str],
    ) -> tuple[list[int], dict[str, list[int]]]:
        assert not isinstance(prompt, str)
        self._check_template()
        roles: tuple[Role, ...] = tuple(message.role for message in prompt)
        prompt_text = self._render(prompt, "generation")
        if "control_tokens_split" in notes:
            self._check_mark_survives(prompt, prompt_text, "generation", mark)
        prompt_ids = self._pieces(prompt_text, mark)
        if self._controls(prompt_ids) > self._controls_written(roles, generation=True):
            raise RowProblem("control_tokens", "prompt", "its text normalises to a control token")
        own = self._controls_written(
            (*roles, "assistant"), generation=False
        ) - self._controls_written(roles, generation=True)
        completions: dict[str, list[int]] = {}
        for at, side in sides.items():
            assert not isinstance(side, str)
            full_text = self._render((*prompt, *side), "conversation")
            if "control_tokens_split" in notes:
                self._check_mark_survives((*prompt, *side), full_text, "conversation", mark)
            if not full_text.startswith(prompt_text):
                raise RowProblem(
                    "template_mismatch",
                    at,
                    "the chat template renders the prompt in another way once it is answered",
                )
            if at not in whole:
                full_text = self._without_tail(full_text, at)
            ids = self._completion_ids(prompt_ids, prompt_text, full_text, mark, notes)
            if self._controls(ids) > (own if at in whole else 0):
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            if at not in whole:
                completions[at] = ids
                continue
            end = next((n for n, i in enumerate(ids) if i in self.control_ids), None)
            if end is None:
                raise RowProblem(
                    "template_mismatch", at, "the chat template writes no end token behind it"
                )
            completions[at] = ids[: end + 1]
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
        prompt_ids = self._pieces(prompt, mark)
        if self._controls(prompt_ids):
            raise RowProblem("control_tokens", "prompt", "its text normalises to a control token")
        completions: dict[str, list[int]] = {}
        for at, side in sides.items():
            assert isinstance(side, str)
            ids = self._completion_ids(prompt_ids, prompt, prompt + side, mark, notes)
            if self._controls(ids):
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            completions[at] = [*ids, end] if at in whole else ids
        return [*self._prefix(), *prompt_ids], completions

    def _without_tail(self, full_text: str, at: str) -> str:
        """The rendered conversation up to the end of the last answer's own text."""
        if self._tail is None:
            content = "qXanswerXq"
            answer = Message(role="assistant", content=content)
            text = self._render((*_probe(("user",)), answer), "conversation")
            self._tail = text.rpartition(content)[2]
        if not full_text.endswith(self._tail):
            raise RowProblem(
                "template_mismatch", at, "the chat template does not close every answer alike"
            )
        return full_text.removesuffix(self._tail)

    def _completion_ids(
        self, prompt_ids: list[int], prompt_text: str, full_text: str, mark: str, notes: set[str]
    ) -> list[int]:
        full_ids = self._pieces(full_text, mark)
        if full_ids[: len(prompt_ids)] == prompt_ids:
            return full_ids[len(prompt_ids) :]
        notes.add("boundary_merge")
        tail = full_text[len(prompt_text) :].split(mark)
        return [i for piece in tail for i in self.continued(piece)]

    def _pieces(self, text: str, mark: str) -> list[int]:
        first, *others = text.split(mark)
        return self._ids(first) + [i for piece in others for i in self.continued(piece)]

    def _ids(self, text: str) -> list[int]:
        # verbose=False: transformers otherwise warns about rows over model_max_length, which are
        # counted and ruled by data.max_length here.
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
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
            before, both = self._ids(anchor), self._ids(anchor + text)
            # An unknown anchor would swallow an unknown first word: both are one unk.
            if not before or self.tokenizer.unk_token_id in before:
                continue
            if both[: len(before)] != before:
                continue
            ids = both[len(before) :]
            if self.tokenizer.decode(both, clean_up_tokenization_spaces=False) == anchor + text:
                return ids
            fallback = ids if fallback is None else fallback
        return self._ids(text) if fallback is None else fallback

    def _prefix(self) -> list[int]:
        """Ids that the tokenizer puts before plain text: its BOS, or nothing."""
        if self._prefix_ids is None:
            bare = self._ids("a")
            dressed = cast(list[int], self.tokenizer("a", verbose=False)["input_ids"])
            at = next(
                (n for n in range(len(dressed)) if dressed[n : n + len(bare)] == bare), len(dressed)
            )
            self._prefix_ids = dressed[:at]
        return self._prefix_ids

    def _controls(self, ids: Iterable[int]) -> int:
        return sum(i in self.control_ids for i in ids)

    def _controls_written(self, roles: tuple[Role, ...], *, generation: bool) -> int:
        """Control tokens that the template itself writes for a conversation of these roles."""
        key = (roles, generation)
        if key not in self._written:
            text = self._render(_probe(roles), "generation" if generation else "conversation")
            self._written[key] = self._controls(self._ids(text))
        return self._written[key]

    def _render(self, messages: Sequence[Message], until: str) -> str:
        """The template's text, up to the answer's start ("generation") or its end."""
        return self._rendered(
            [{"role": message.role, "content": message.content} for message in messages], until
        )

    def _rendered(self, conversation: list[dict[str, Any]], until: str) -> str:
        """What the template makes of messages in its own form."""
        try:
            return cast(
                str,
                self.tokenizer.apply_chat_template(
                    conversation,
                    tokenize=False,
                    add_generation_prompt=until == "generation",
                ),
            )
        except jinja2.TemplateError as error:
            # raise_exception("Conversation roles must alternate ...") of Mistral, Gemma and others;
            # undefined names and filters are another child of the same class.
            if type(error) is jinja2.TemplateError:
                raise RowProblem(
                    "wrong_roles", "prompt", f"the chat template says: {str(error)[:160]}"
                ) from error
            raise RowProblem(
                "template_mismatch", "prompt", f"the chat template fails: {type(error).__name__}"
            ) from error
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise RowProblem(
                "template_mismatch", "prompt", f"the chat template fails: {type(error).__name__}"
            ) from error

    def _check_mark_survives(
        self, messages: Sequence[Message], rendered: str, until: str, mark: str
    ) -> None:
        bare = [
            Message(role=message.role, content=message.content.replace(mark, ""))
            for message in messages
        ]
        if self._render(bare, until) != rendered.replace(mark, ""):
            raise RowProblem(
                "template_mismatch",
                "prompt",
                "the chat template rewrites content, so a control token in it cannot be told apart",
            )

    def _check_template(self) -> None:
        """Refuse a template that cannot hold one end token, before any row is looked at."""
        if self._template_checked:
            return
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            raise DataError(
                "The rows are conversations and the tokenizer has no chat template: choose an "
                "instruction-tuned model, set tokenizer.chat_template, or give the rows as plain "
                "text (prompt, chosen and rejected as strings)."
            )
        prompt = _probe(("user",))
        answer = Message(role="assistant", content="qXanswerXq")
        try:
            before = self._render(prompt, "generation")
            after = self._render((*prompt, answer), "conversation")
        except RowProblem as problem:
            raise DataError(
                f"The tokenizer's chat template cannot render one question and its answer "
                f"({problem.detail}): mend tokenizer.chat_template, or give the rows as plain text."
            ) from problem
        lead, found, _ = after.removeprefix(before).partition(answer.content)
        trouble = None
        if not after.startswith(before):
            trouble = "renders the question in another way once it is answered"
        elif not found:
            trouble = "does not write the answer's text as it is"
        elif self._control_text.search(lead):
            trouble = (
                "opens the assistant's turn only with the answer: it ignores add_generation_prompt"
            )
        elif self._controls(self._ids(after)) == self._controls(self._ids(before)):
            trouble = "writes no end token behind an answer, so generation would never stop"
        bos = tokenizer.bos_token_id
        if trouble is None and bos is not None and self._ids(before)[:2] == [bos, bos]:
            trouble = "writes the beginning-of-sequence token twice"
        if trouble is not None:
            raise DataError(
                f"The tokenizer's chat template {trouble}. Training on it would show the model a "
                "context that generation never makes: mend tokenizer.chat_template, or give the "
                "rows as plain text."
            )
        self._template_checked = True

    def cut(self, tokenized: TokenizedPair) -> TokenizedPair:
        """`tokenized` within `policy.max_length`, and with two different completions."""
        policy = self.policy
        prompt_ids = tokenized.prompt_ids
        chosen_ids, rejected_ids = tokenized.chosen_ids, tokenized.rejected_ids
        longest = max(len(chosen_ids), len(rejected_ids))
        notes = set(tokenized.notes)
        limit = policy.max_length
        if limit is not None and len(prompt_ids) + longest > limit:
            if policy.on_too_long == "cut_prompt":
                prompt_ids = self._cut_prompt(prompt_ids, limit - longest)
                notes.add("cut_prompt")
            elif policy.on_too_long == "cut_completion":
                room = limit - len(prompt_ids)
                if room < policy.min_completion_tokens:
                    raise RowProblem(
                        "too_long",
                        "prompt",
                        f"{len(prompt_ids)} tokens leave a completion {max(room, 0)} of {limit}",
                    )
                chosen_ids, rejected_ids = chosen_ids[:room], rejected_ids[:room]
                notes.add("cut_completion")
            else:
                at = "chosen" if len(chosen_ids) >= len(rejected_ids) else "rejected"
                raise RowProblem(
                    "too_long",
                    at,
                    f"{len(prompt_ids)} + {longest} tokens, data.max_length is {limit}",
                )
        if chosen_ids == rejected_ids and tokenized.pair.rejected_images is None:
            raise RowProblem("equal_after_cut", "rejected", "the same tokens as chosen")
        return replace(
            tokenized,
            prompt_ids=prompt_ids,
            chosen_ids=chosen_ids,
            rejected_ids=rejected_ids,
            notes=tuple(sorted(notes)),
        )

    def _cut_prompt(self, prompt_ids: list[int], room: int) -> list[int]:
        bos = self.tokenizer.bos_token_id
        kept = prompt_ids[:1] if bos is not None and prompt_ids[:1] == [bos] else []
        if room <= len(kept):
            raise RowProblem(
                "too_long", "prompt", f"the longer completion leaves {max(room, 0)} tokens for it"
            )
        return kept + prompt_ids[len(prompt_ids) - (room - len(kept)) :]


def _probe(roles: Sequence[Role]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content="x") for role in roles)


def _ends(pair: PreferencePair, at: str) -> bool:
    """Whether the side `at` is a whole answer; False for the beginning of one."""
    return (pair.chosen_ends if at == "chosen" else pair.rejected_ends) is not False


def _with_sides(pair: PreferencePair, chosen: str, rejected: str) -> PreferencePair:
    """The prompt of `pair` with two other answers, and nothing else of it."""
    sides: list[Text] = [
        (Message(role="assistant", content=side),) if pair.is_conversational else side
        for side in (chosen, rejected)
    ]
    return PreferencePair(
        prompt=pair.prompt,
        chosen=sides[0],
        rejected=sides[1],
        images=pair.images,
        source=pair.source,
        row=pair.row,
    )


def _contents(pair: PreferencePair) -> Iterable[str]:
    for text in (pair.prompt, pair.chosen, pair.rejected):
        if isinstance(text, str):
            yield text
        else:
            yield from (message.content for message in text)


def encoder_of(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, policy: RowPolicy) -> Encoder:
    """The encoder of a text model's tokenizer, or of a vision-language model's processor."""
    if hasattr(tokenizer, "image_processor"):
        from align.vision.tokens import VisionEncoder

        return VisionEncoder(cast("ProcessorMixin", tokenizer), policy)
    return Encoder(cast("PreTrainedTokenizerBase", tokenizer), policy)


def encode_pair(
    pair: PreferencePair, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, policy: RowPolicy
) -> TokenizedPair:
    """Token ids of one pair, cut as `policy` says.

    Raises:
        RowProblem: the row cannot be used; `align.records.REASONS` lists the codes.
        DataError: no such row can be used with this tokenizer (no chat template, no end token).
    """
    encoder = encoder_of(tokenizer, policy)
    return encoder.cut(encoder.encode(pair))


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    policy: RowPolicy,
    report: RowReport,
) -> list[TokenizedPair]:
    """Token ids of all pairs that can be used, in order; the others move to `report.dropped`.

    A fresh report counts `pairs` as read; the one that came with them counts them already.

    Raises:
        DataError: a policy says to stop at such a row, more rows than `policy.max_dropped` are
            dropped by now, none is left, or the tokenizer cannot encode such rows.
    """
    if report.read == 0:
        report.read = report.kept = len(pairs)
    if report.kept < len(pairs):
        raise ValueError(f"the report counts {report.kept} kept rows, and {len(pairs)} were given")
    encoder = encoder_of(tokenizer, policy)
    tokenized: list[TokenizedPair] = []
    for pair in pairs:
        try:
            row = encoder.cut(encoder.encode(pair))
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, pair.source, pair.row)
            policy.obey(dropped)
            report.drop_kept(dropped)
            continue
        report.notes.update(row.notes)
        tokenized.append(row)
    report.check(policy.max_dropped)
    present = _present(tokenized)
    report.ignore_columns(
        [
            f"{name} (on {count} of {len(tokenized)} rows)"
            for name, count in present.items()
            if count < len(tokenized)
        ]
    )
    return tokenized


def _present(rows: Sequence[TokenizedPair]) -> Counter[str]:
    return Counter(
        name for row in rows for name in OPTIONAL_COLUMNS if getattr(row.pair, name) is not None
    )


def to_dataset(rows: Sequence[TokenizedPair]) -> datasets.Dataset:
    """The columns a trainer reads; an optional one only where every row has it.

    Token weights are cut with their completion. The columns are prompt_ids, chosen_ids,
    rejected_ids, row_id, source, row, those of `OPTIONAL_COLUMNS`, `pair_kind` where all rows are
    of OPA-DPO's kinds, and those of `align.vision.columns` where a row shows pictures.
    """
    import datasets

    from align.types import PAIR_KINDS

    number, text = datasets.Value("float64"), datasets.Value("string")
    ids = datasets.List(datasets.Value("int64"))
    features: dict[str, Any] = {
        "prompt_ids": ids,
        "chosen_ids": ids,
        "rejected_ids": ids,
        "row_id": text,
        "source": text,
        "row": datasets.Value("int64"),
    }
    columns: dict[str, list[Any]] = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "chosen_ids": [row.chosen_ids for row in rows],
        "rejected_ids": [row.rejected_ids for row in rows],
        "row_id": [row.pair.id for row in rows],
        "source": [row.pair.source for row in rows],
        "row": [row.pair.row for row in rows],
    }
    present = _present(rows)
    for name in OPTIONAL_COLUMNS:
        if not rows or present[name] < len(rows):
            continue
        if name.endswith("_token_weight"):
            side = name.replace("_token_weight", "_ids")
            features[name] = datasets.List(number)
            columns[name] = [
                list(getattr(row.pair, name)[: len(getattr(row, side))]) for row in rows
            ]
        else:
            features[name] = text if name == "group_id" else number
            columns[name] = [getattr(row.pair, name) for row in rows]
    if any(row.pair.images is not None for row in rows):
        from align.vision.columns import image_columns

        image_columns([row.pair for row in rows], columns, features)
    if rows and all(row.pair.pair_kind in PAIR_KINDS for row in rows):
        features["pair_kind"] = text
        columns["pair_kind"] = [row.pair.pair_kind for row in rows]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
