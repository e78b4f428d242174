"""What a search needs of a policy beyond whole completions: beginnings continued, token by token.

A policy (`align.policies.base`) answers prompts; a writer continues an answer that has begun, gives
the log-probs of what it drew, scores a given continuation, and reads how much probability the next
token gives to named options. Everything is token ids, so that what is trained on later is exactly
what was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from align.data.messages import Text
from align.policies.base import Sampling

Finish = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Stem:
    """The beginning of an answer.

    Attributes:
        prompt_ids: exactly what training sees before the answer, the generation prompt included.
        prefix_ids: of the answer so far; may be empty.
        key: names what is drawn from here: the same key, sample index and seed give the same
            tokens, whichever stems share the batch.
    """

    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Draw:
    """`n` continuations of a stem that are asked for."""

    stem: Stem
    n: int
    sampling: Sampling


@dataclass(frozen=True)
class Drawn:
    """One continuation.

    Attributes:
        ids: as drawn; the end token is the last one where `finish` is "end", and the tokens that
            spell the stop text are there where it is "stop".
        logps: nats, one per id, of the model itself (temperature 1, no top_k or top_p).
        text: what the ids spell behind the stem, without the end token.
        finish: an end token was drawn, a stop text was completed, or max_new_tokens were reached.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    finish: Finish


@dataclass(frozen=True)
class NoAnswer:
    """A request that the writer could not answer.

    Attributes:
        reason: one of the codes of `align.policies.base.FAILURES`.
        detail: for people; never the text of a row.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class OptionMass:
    """How much probability the next token gives to each option.

    Attributes:
        mass: per option, the sum over all single tokens that spell it; in [0, 1].
        is_truncated: the server shows only its likeliest tokens, and a token of an option was not
            among them: its probability counted as 0 and may be more.
    """

    mass: Mapping[str, float]
    is_truncated: bool = False


class Writer(Protocol):
    """A language model with fixed weights, at the level of its tokens."""

    @property
    def identity(self) -> str:
        """Hash of the weights, or model@revision at URL."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        """What training sees before an answer to `prompt`.

        Raises:
            RowProblem: the prompt cannot be used.
        """
        ...

    def answer_ids(self, prompt: Text, answer: str) -> tuple[int, ...]:
        """A whole answer to `prompt` as training encodes it, the end token included.

        Raises:
            RowProblem: prompt or answer cannot be used.
        """
        ...

    def text(self, ids: Sequence[int], behind: int) -> str:
        """What `ids` spell behind the token `behind`; end tokens are left out."""
        ...

    def room(self, stem: Stem) -> int:
        """Tokens that may follow the stem in the model's context."""
        ...

    def draw(self, requests: Sequence[Draw], seed: int) -> list[list[Drawn] | NoAnswer]:
        """Continuations, in the order of the requests; each stem is read once for all its samples.

        A server that loses some of a request's samples leaves fewer than `n`.

        Raises:
            ValueError: a request asks for more tokens than there is room for.
        """
        ...

    def score(
        self, requests: Sequence[tuple[Stem, tuple[int, ...]]]
    ) -> list[tuple[float, ...] | NoAnswer]:
        """Log-probs [nats] of the ids of each continuation behind its stem."""
        ...

    def option_mass(
        self, stems: Sequence[Stem], options: Mapping[str, Sequence[str]]
    ) -> list[OptionMass | NoAnswer]:
        """Probability of each option at the token behind each stem.

        Args:
            stems: questions that end where the answer is to come.
            options: name -> spellings. Every single token whose text is a spelling, white space
                around it aside, counts for that option.

        Raises:
            RecipeError: no token of the vocabulary spells an option.
        """
        ...
