"""What every pipeline leaves per unit of work: pairs with their provenance, and all that was lost.

The training columns are those of `align.data.pairs.PreferencePair`. The others say where a pair
comes from; they are typed the same in every pipeline, so that their files concatenate, and no
trainer reads them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from align.data.pairs import PreferencePair
from align.data.problems import DroppedRow
from align.data.records import Record

Pipeline = Literal["mcts", "agentq", "selfref", "upo", "opadpo"]


class SpanWeight(Record):
    """Characters [start, end) of a completion, and the weight of their tokens."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    weight: float


class BuiltPair(PreferencePair):
    """A pair that a pipeline made.

    Attributes:
        uid: of the pair: a hash of the pipeline, its unit of work and its settings.
        pipeline: which one.
        round: of the loop; 0 outside of one.
        assistant_prefix: the beginning that both completions share, where they are steps.
        uncertainty: in the pipeline's own units; see its README.
        prob_chosen: what an estimator or annotator says P(chosen beats rejected) is.
        weight: sampling probability; no loss factor.
        visit_counts: of chosen and rejected, in the search.
        priors: likewise.
        depth: committed steps before the two.
        chosen_span_weights: token weights in their tokenizer-free form.
        rejected_span_weights: likewise.
        model: identity of the policy that wrote the completions.
        config_hash: of the pipeline's settings.
        seed: of the draw.
        detail: the pipeline's own findings, JSON-ready.
    """

    uid: str
    pipeline: Pipeline
    round: int = 0
    assistant_prefix: str | None = None
    uncertainty: float | None = None
    prob_chosen: float | None = None
    weight: float | None = None
    visit_counts: tuple[int, int] | None = None
    priors: tuple[float, float] | None = None
    depth: int | None = None
    chosen_span_weights: tuple[SpanWeight, ...] | None = None
    rejected_span_weights: tuple[SpanWeight, ...] | None = None
    model: str
    config_hash: str
    seed: int
    detail: dict[str, Any] = Field(default_factory=dict)


class Built(Record):
    """What became of one unit of work.

    Attributes:
        uid: of the unit.
        read: candidates looked at; read = pairs + dropped.
        pairs: kept.
        dropped: with reasons.
        counts: tokens drawn, calls made and so on, to be added up.
        record: everything else worth keeping: a whole tree, every judgement; JSON-ready.
    """

    uid: str
    read: int = Field(ge=0)
    pairs: tuple[BuiltPair, ...] = ()
    dropped: tuple[DroppedRow, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
