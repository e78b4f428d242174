"""What the pipeline of self-reference AI feedback is told.

Bao et al. 2024 (arXiv 2406.11190). Marked "code": a value of the authors' program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from align.node import Conflict
from align_data.settings import PipelineSettings

PRINCIPLE = "The better answer is the one that is better for humanity as a whole."


class SelfReferenceSettings(PipelineSettings):
    """An annotator answers itself, criticises two answers against its own, and chooses one."""

    principle: str = Field(default=PRINCIPLE, min_length=1)
    """What makes an answer better, in the words that the annotator reads. The paper has one general
    principle of what is best for humanity; its wording is not published."""
    own_answer: Literal["shared", "each_round", "none"] = "shared"
    """shared: one own answer per prompt; each_round: a new one per round (code); none: no own
    answer, which is the paper's baseline."""
    pairs: Literal["all", "neighbours"] = "all"
    """Which responses are compared: all pairs, or 1 with 2, 3 with 4 and so on."""
    rounds: int = Field(default=2, ge=2)
    """Times that a pair is annotated; even, since the order is swapped every other time (code)."""
    decide: Literal["both_orders", "majority", "soft"] = "both_orders"
    """both_orders: every round must agree; majority: of the rounds' verdicts; soft: the sign of the
    strength, averaged over both orders."""
    verdict: Literal["written", "forced"] = "written"
    """written: the critique's own last line; forced: the likelier of the two verdicts behind the
    critique, which needs an annotator that scores."""
    parse: Literal["line", "line_or_sentence"] = "line"
    """What counts as a written verdict: only the line that is asked for, or, where it is absent,
    also a last sentence that says so of one answer."""
    strength: Literal["forced_verdict", "pooled_feedback", "votes"] = "forced_verdict"
    """Where preference and margin come from: the log-odds of the two verdicts behind the critique,
    the probability of the whole critiques of either side, or the votes alone. The first two need an
    annotator that scores; the paper's own formula is not published."""
    min_label_mass: float = Field(default=0.5, ge=0, le=1)
    """A forced verdict counts where both verdicts together have at least this probability."""
    margin_max: float = Field(default=10.0, gt=0)
    """Margins [nats] of forced_verdict are clipped to it."""
    min_margin: float = Field(default=1e-6, ge=0)
    """A pair that is closer is dropped; nats for forced_verdict, else a share in [0, 1]."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Tokens of an own answer, and of a critique, at most (code)."""
    temperature: float = Field(default=0.1, ge=0)
    """Of own answers and critiques (code)."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together (code)."""
    max_characters: int | None = Field(default=None, ge=1)
    """A pair with a longer response is dropped before anyone is asked."""
    chunk: int = Field(default=64, ge=1)
    """Prompts that are worked on together, and resumed together."""

    @property
    def needs_scorer(self) -> bool:
        """Whether log-probs of given texts are needed."""
        return self.strength != "votes" or self.verdict == "forced"

    def hashed(self) -> dict[str, Any]:
        """All keys of this class."""
        return self.fields_of(SelfReferenceSettings) | {"run": "self_reference"}

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.rounds % 2:
            yield (
                "rounds",
                f"{self.rounds} is odd, so one order counts more often; write an even one",
            )
        if self.decide == "majority" and self.rounds < 4:
            yield "decide", "a majority of 2 rounds is both_orders; write that, or rounds: 4"
        if self.decide == "soft" and self.strength != "forced_verdict":
            yield "decide", "soft is the sign of a strength; write `strength: forced_verdict`"
        if self.verdict == "forced" and self.parse != "line":
            yield "parse", "`verdict: forced` reads no written verdict; take it out"
