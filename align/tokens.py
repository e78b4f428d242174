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
  that `cut_completion` shortened has no end token: the text did not end there.
- The spelling of a control token inside content stays text. It is cut after its first character
  and the pieces are encoded apart, so no token can span the whole. Control tokens are the special
  tokens of the tokenizer and the added tokens that a rendered prompt is built from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair.

    Attributes:
        prompt_ids: shared by both sides.
        chosen_ids: the completion's ids, the end token included.
        rejected_ids: the same for the other side.
        pair: the row they come from.
        notes: what was done to the row (`boundary_merge`, `control_tokens_split`, `cut_prompt`,
            `cut_completion`).
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    pair: PreferencePair
    notes: tuple[str, ...] = ()


class _Encoder:
    """A tokenizer with what must be known about it once: control tokens, prefix, end token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self._written: dict[tuple[tuple[Role, ...], bool], int] = {}
        self._spelling: dict[str, bool] = {}
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
        self._control_ids = frozenset(i for i in control if i != unk or i in ends)

    def encode(self, pair: PreferencePair) -> TokenizedPair:
        """Ids of `pair` before any cut."""
        check_pair(pair)
        notes: set[str] = set()
        # The mark must be a character that no content of this row holds.
        held = {c for text in _contents(pair) for c in _IN_PRIVATE_USE.findall(text)}
        mark = next((c for c in _PRIVATE_USE if c not in held), "")
        if not mark:
            raise RowProblem("bad_unicode", "prompt", "every private-use character is in use")
        prompt = self._marked(pair.prompt, "prompt", mark, notes)
        sides = [
            self._marked(side, at, mark, notes)
            for at, side in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
        if pair.is_conversational:
            prompt_ids, completions = self._encode_chat(prompt, sides, mark, notes)
        else:
            prompt_ids, completions = self._encode_plain(prompt, sides, mark, notes)
        chosen_ids, rejected_ids = completions
        for at, ids in (("chosen", chosen_ids), ("rejected", rejected_ids)):
            if len(ids) < 2:
                raise RowProblem("empty_completion", at, "no token but the end token")
            weight = pair.chosen_token_weight if at == "chosen" else pair.rejected_token_weight
            if weight is not None and len(weight) != len(ids):
                raise RowProblem(
                    "bad_score",
                    f"{at}_token_weight",
                    f"{len(weight)} weights for {len(ids)} completion tokens, end token included",
                )
        return TokenizedPair(prompt_ids, chosen_ids, rejected_ids, pair, tuple(sorted(notes)))

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
            ids = self._ids(control[:1]) + self._continued(control[1:])
            unk = self.tokenizer.unk_token_id
            self._spelling[control] = len(control) > 1 and not any(
                i == unk or i in self._control_ids for i in ids
            )
        return self._spelling[control]

    def _encode_chat(
        self, prompt: Text, sides: Sequence[Text], mark: str, notes: set[str]
    ) -> tuple[list[int], list[list[int]]]:
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
        completions: list[list[int]] = []
        for at, side in zip(("chosen", "rejected"), sides, strict=True):
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
            ids = self._completion_ids(prompt_ids, prompt_text, full_text, mark, notes)
            if self._controls(ids) > own:
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            end = next((n for n, i in enumerate(ids) if i in self._control_ids), None)
            if end is None:
                raise RowProblem(
                    "template_mismatch", at, "the chat template writes no end token behind it"
                )
            completions.append(ids[: end + 1])
        return prompt_ids, completions

    def _encode_plain(
        self, prompt: Text, sides: Sequence[Text], mark: str, notes: set[str]
    ) -> tuple[list[int], list[list[int]]]:
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
        completions: list[list[int]] = []
        for at, side in zip(("chosen", "rejected"), sides, strict=True):
            assert isinstance(side, str)
            ids = self._completion_ids(prompt_ids, prompt, prompt + side, mark, notes)
            if self._controls(ids):
                raise RowProblem("control_tokens", at, "its text normalises to a control token")
            completions.append([*ids, end])
        return [*self._prefix(), *prompt_ids], completions

    def _completion_ids(
        self, prompt_ids: list[int], prompt_text: str, full_text: str, mark: str, notes: set[str]
    ) -> list[int]:
        full_ids = self._pieces(full_text, mark)
        if full_ids[: len(prompt_ids)] == prompt_ids:
            return full_ids[len(prompt_ids) :]
        notes.add("boundary_merge")
        tail = full_text[len(prompt_text) :].split(mark)
        return [i for piece in tail for i in self._continued(piece)]

    def _pieces(self, text: str, mark: str) -> list[int]:
        first, *others = text.split(mark)
        return self._ids(first) + [i for piece in others for i in self._continued(piece)]

    def _ids(self, text: str) -> list[int]:
        # verbose=False: transformers otherwise warns about rows over model_max_length, which are
        # counted and ruled by data.max_length here.
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return cast(list[int], ids)

    def _continued(self, text: str) -> list[int]:
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
        return sum(i in self._control_ids for i in ids)

    def _controls_written(self, roles: tuple[Role, ...], *, generation: bool) -> int:
        """Control tokens that the template itself writes for a conversation of these roles."""
        key = (roles, generation)
        if key not in self._written:
            text = self._render(_probe(roles), "generation" if generation else "conversation")
            self._written[key] = self._controls(self._ids(text))
        return self._written[key]

    def _render(self, messages: Sequence[Message], until: str) -> str:
        """The template's text, up to the answer's start ("generation") or its end."""
        try:
            return cast(
                str,
                self.tokenizer.apply_chat_template(
                    [{"role": message.role, "content": message.content} for message in messages],
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
        if chosen_ids == rejected_ids:
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


def _contents(pair: PreferencePair) -> Iterable[str]:
    for text in (pair.prompt, pair.chosen, pair.rejected):
        if isinstance(text, str):
            yield text
        else:
            yield from (message.content for message in text)


def encode_pair(
    pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy
) -> TokenizedPair:
    """Token ids of one pair, cut as `policy` says.

    Raises:
        RowProblem: the row cannot be used; `align.records.REASONS` lists the codes.
        DataError: no such row can be used with this tokenizer (no chat template, no end token).
    """
    encoder = _Encoder(tokenizer, policy)
    return encoder.cut(encoder.encode(pair))


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
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
    encoder = _Encoder(tokenizer, policy)
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
    rejected_ids, row_id, source, row and those of `OPTIONAL_COLUMNS`.
    """
    import datasets

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
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
