"""From rows to token ids and back, as an engine needs it that draws tokens itself.

The ids are the ones that training on the same rows makes (`align.tokens.encoder`): a policy
continues what it was trained on, and what it writes is trained on as it stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from align.data.completions import Completion
from align.data.images import ImageRef
from align.data.messages import Message, Text
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.prompts import Prompt
from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.policies.base import Failed, Sampling, completion_of
from align.tokens.encoding import encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

End = Literal["end", "stop", "control"]

# A pair needs two sides that differ; where a row has fewer, one of these stands in.
_STAND_INS = ("0", "1")


@dataclass(frozen=True)
class Begun:
    """Prompts ready to be continued, and those that cannot be.

    Attributes:
        ids: of the prompts that can, by their number.
        ends: ids that end an answer to them.
        results: per prompt, n failures where it cannot be continued, else nothing yet.
    """

    ids: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ends: set[int] = field(default_factory=set[int])
    results: list[list[Completion | Failed]] = field(default_factory=list)


@dataclass(frozen=True)
class Ends:
    """What ends a sample.

    Attributes:
        whole: tokens after which it is complete, and which are no part of its text.
        control: the other control tokens: they have no place in a completion, whose text would not
            give them back.
        stop: texts after which it is complete.
    """

    whole: frozenset[int]
    control: frozenset[int]
    stop: tuple[str, ...]


class Prompting:
    """A tokenizer, between rows and ids; control tokens that a text spells stay text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        self._encoder = encoder_of(tokenizer, RowPolicy(max_length=None))
        self.tokenizer = self._encoder.tokenizer
        self._alone: dict[int, str] = {}
        self._spelled_by: dict[str, list[int]] = {}

    def row(
        self, prompt: Text, completion: str, images: tuple[ImageRef, ...] | None = None
    ) -> TokenRow:
        """Ids of the prompt and of its completion, the end token included.

        Raises:
            RowProblem: prompt or completion cannot be used.
            DataError: no such row can be used with this tokenizer.
        """
        encoded = self._encoder.encode(_pair(prompt, completion, images))
        return TokenRow(encoded.prompt_ids, encoded.chosen_ids)

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        """Ids that an answer to `prompt` continues.

        Raises:
            RowProblem: the prompt cannot be used.
            DataError: no such row can be used with this tokenizer.
        """
        ids, _ = self._encoder.prompt_ids(_pair(prompt, _STAND_INS[0]))
        return tuple(ids)

    def end_and_control_ids(
        self, of_model: int | Sequence[int] | None
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Ids that end an answer, plain or in a chat, and the other control tokens.

        Args:
            of_model: end tokens of the model's generation config.
        """
        begun = Begun()
        if self.tokenizer.chat_template is not None:
            question = (Message(role="user", content=_STAND_INS[0]),)
            begun.ends.add(self.row(question, _STAND_INS[0]).completion_ids[-1])
        ends = self.ends(begun, of_model, Sampling(max_new_tokens=1))
        return ends.whole, ends.control

    def option_ids(self, options: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        """Per option, every single token that spells it, white space around it aside.

        Raises:
            RecipeError: no token of the vocabulary spells an option, or two options share one.
        """
        if not self._spelled_by:
            special = set(self.tokenizer.all_special_ids)
            ids = sorted(set(self.tokenizer.get_vocab().values()) - special)
            for i, text in zip(ids, map(self._decoded, ([i] for i in ids)), strict=True):
                self._spelled_by.setdefault(text.strip(), []).append(i)
        found: dict[str, list[int]] = {}
        for name, spellings in options.items():
            wanted = dict.fromkeys(spelling.strip() for spelling in spellings)
            found[name] = [i for one in wanted if one for i in self._spelled_by.get(one, ())]
            if not found[name]:
                raise RecipeError(
                    f"No single token of this model spells the option {name!r} as any of "
                    f"{sorted(wanted)}: ask for an answer of one short word, such as A or B."
                )
        if len({i for ids in found.values() for i in ids}) < sum(map(len, found.values())):
            raise RecipeError(
                f"The options {sorted(found)} share a spelling, so what the model answers could "
                "not be told apart: give each option spellings of its own."
            )
        return found

    def begin(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, longest: int) -> Begun:
        """Ids that generation continues, for `n` samples in at most `longest` tokens in all.

        Raises:
            DataError: no such prompt can be used with this tokenizer.
        """
        begun = Begun()
        room = longest - sampling.max_new_tokens
        for number, prompt in enumerate(prompts):
            begun.results.append([])
            try:
                row = self.row(prompt.prompt, _STAND_INS[0], prompt.images)
            except RowProblem as problem:
                begun.results[number] = _all_failed(prompt, n, "rejected", str(problem))
                continue
            if len(row.prompt_ids) > room:
                detail = (
                    f"{len(row.prompt_ids)} tokens, and {max(room, 0)} of {longest} are left beside"
                    f" max_new_tokens"
                )
                begun.results[number] = _all_failed(prompt, n, "too_long", detail)
                continue
            begun.ids[number] = list(row.prompt_ids)
            begun.ends.add(row.completion_ids[-1])
        return begun

    def ends(self, begun: Begun, of_model: int | Sequence[int] | None, sampling: Sampling) -> Ends:
        """Ends by the chat template, the tokenizer, and `of_model`'s generation config."""
        named = [of_model] if isinstance(of_model, int) else list(of_model or ())
        eos = self.tokenizer.eos_token_id
        whole = {*begun.ends, *named, *([eos] if isinstance(eos, int) else [])}
        control = self._encoder.control_ids
        return Ends(frozenset(whole), frozenset(control - whole), sampling.stop)

    def text(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`.

        Decoded alone they can lose a space: SentencePiece-like tokenizers take it off the first
        word of a text.
        """
        return self._encoder.spelled(ids, behind)

    def continued(self, text: str) -> list[int]:
        """Ids of `text` as it stands in the middle of a longer text."""
        return self._encoder.continued(text)

    def has_stopped(self, ids: Sequence[int], behind: int, stop: Sequence[str]) -> bool:
        """Whether the last of `ids`, which stand behind the token `behind`, completed a stop."""
        if not self._may_hold(ids[-1], stop):
            return False
        # A token may be less than a character, so more tokens are looked at than the text has.
        window = 4 * max(map(len, stop)) + 8
        before = behind if len(ids) <= window else ids[-window - 1]
        text = self.text(ids[-window:], before)
        return any(one in text for one in stop)

    def text_of(self, i: int) -> str:
        """The text of one token alone."""
        if i not in self._alone:
            self._alone[i] = self._decoded([i])
        return self._alone[i]

    def _may_hold(self, i: int, stop: Sequence[str]) -> bool:
        """False where token `i` has no character of any text of `stop`: most tokens, quickly."""
        alone = self.text_of(i)
        # Alone it may have lost its space, or be a part of a character.
        if not alone or "\ufffd" in alone or any(" " in one for one in stop):
            return True
        return any(character in alone for one in stop for character in one)

    def _decoded(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def written(
        self,
        prompt: Prompt,
        sample: int,
        ids: Sequence[int],
        end: End | None,
        *,
        behind: int,
        sampling: Sampling,
        identity: str,
    ) -> Completion | Failed:
        """The drawn `ids`, without their end token, as a row.

        Args:
            prompt: what they continue.
            sample: number of the continuation.
            ids: without the token that ended them.
            end: how they ended; None where they did not.
            behind: last token of the prompt.
            sampling: how they were drawn.
            identity: of the policy that drew them.
        """
        if end is None and not sampling.keep_unfinished:
            detail = f"no end within {sampling.max_new_tokens} tokens"
            return Failed(prompt, sample, "unfinished", detail)
        if end == "control":
            detail = f"a control token that ends no answer was drawn as token {len(ids) + 1}"
            return Failed(prompt, sample, "unfinished", detail)
        text = self.text(ids, behind)
        places = [text.find(stop) for stop in sampling.stop if stop in text]
        text = text[: min(places, default=len(text))]
        if not text.strip():
            return Failed(prompt, sample, "empty", f"{len(ids)} tokens, all white space")
        finished = end is not None
        return completion_of(prompt, text, policy=identity, sample=sample, finished=finished)


def _pair(
    prompt: Text, completion: str, images: tuple[ImageRef, ...] | None = None
) -> PreferencePair:
    """The two as a row, with some other completion."""
    other = _STAND_INS[0] if completion != _STAND_INS[0] else _STAND_INS[1]
    sides = (_beside(prompt, completion), _beside(prompt, other))
    return PreferencePair(
        prompt=prompt, chosen=sides[0], rejected=sides[1], images=images, source="", row=1
    )


def _beside(prompt: Text, completion: str) -> Text:
    if isinstance(prompt, str):
        return completion
    return (Message(role="assistant", content=completion),)


def _all_failed(prompt: Prompt, n: int, reason: str, detail: str) -> list[Completion | Failed]:
    return [Failed(prompt, sample, reason, detail) for sample in range(n)]
