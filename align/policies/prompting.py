"""From rows to token ids and back, as an engine needs it that draws tokens itself.

The ids are the ones that training on the same rows makes (`align.tokens`): a policy continues what
it was trained on, and what it writes is trained on as it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from align.forest.rows import TokenRow
from align.policies.base import Failed, Sampling, completion_of
from align.records import Completion, Message, PreferencePair, Prompt, RowPolicy, RowProblem, Text
from align.tokens import _Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._encoder = _Encoder(tokenizer, RowPolicy(max_length=None))

    def row(self, prompt: Text, completion: str) -> TokenRow:
        """Ids of the prompt and of its completion, the end token included.

        Raises:
            RowProblem: prompt or completion cannot be used.
            DataError: no such row can be used with this tokenizer.
        """
        other = _STAND_INS[0] if completion != _STAND_INS[0] else _STAND_INS[1]
        pair = PreferencePair(
            prompt=prompt,
            chosen=_beside(prompt, completion),
            rejected=_beside(prompt, other),
            source="",
            row=1,
        )
        encoded = self._encoder.encode(pair)
        return TokenRow(encoded.prompt_ids, encoded.chosen_ids)

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
                row = self.row(prompt.prompt, _STAND_INS[0])
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
        added = self.tokenizer.added_tokens_decoder
        control = {i for i, token in added.items() if token.special}
        # An unknown character becomes unk: that is text.
        control -= {cast(int, self.tokenizer.unk_token_id)}
        return Ends(frozenset(whole), frozenset(control - whole), sampling.stop)

    def text(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`.

        Decoded alone they can lose a space: SentencePiece-like tokenizers take it off the first
        word of a text.
        """
        before, both = self._decoded([behind]), self._decoded([behind, *ids])
        return both[len(before) :] if both.startswith(before) else self._decoded(ids)

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
        if end is None:
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
        return completion_of(prompt, text, policy=identity, sample=sample)


def _beside(prompt: Text, completion: str) -> Text:
    if isinstance(prompt, str):
        return completion
    return (Message(role="assistant", content=completion),)


def _all_failed(prompt: Prompt, n: int, reason: str, detail: str) -> list[Completion | Failed]:
    return [Failed(prompt, sample, reason, detail) for sample in range(n)]
