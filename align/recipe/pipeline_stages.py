"""The pipelines as stages of a recipe: their own settings, and who writes, judges and verifies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from align.policies.endpoint import Endpoint
from align.recipe.base import Conflict
from align.recipe.pipelines.expert_correction import ExpertCorrection, OnPolicyAlignment
from align.recipe.pipelines.mcts import MCTS
from align.recipe.pipelines.self_reference import SelfReference
from align.recipe.pipelines.uncertainty import Uncertainty


class SearchSteps(MCTS):
    """A tree search over the steps of an answer; sibling steps become pairs."""

    verify: Literal["world", "answers"]
    """Who knows whether an answer is right: world (exact), or answers, which the prompts bring."""
    pattern: str | None = Field(default=None, min_length=1)
    """Regular expression that finds the answer in a response; null takes the last number."""
    batch_rows: int = Field(default=128, ge=1)
    """Steps drawn at a time; it changes no step."""
    server: Endpoint | None = None
    """Weights behind an OpenAI-compatible completions address, in place of the policy in process;
    model.model_name_or_path then names their tokenizer."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.verify == "world" and self.pattern is not None:
            yield "pattern", "`verify: world` does not read it; take it out"


class AnnotateByReference(SelfReference):
    """Completions of the generate stage, compared by an annotator that has answered itself."""

    annotator: Literal["policy", "world", "server"] = "policy"
    """Who annotates: the policy itself, a rule-based annotator of the world, or a server."""
    batch_rows: int = Field(default=128, ge=1)
    """Texts drawn at a time; it changes no text."""
    server: Endpoint | None = None
    """Where the annotator is served. Its log-probs are not read: write `strength: votes`."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if (self.annotator == "server") != (self.server is not None):
            yield "server", "is given with `annotator: server`, and only then"
        if self.annotator == "server" and self.needs_scorer:
            yield "strength", "a server gives no log-probs; write `strength: votes`"


class FilterUncertain(Uncertainty):
    """Completions of the generate stage, or what a judge stage says of them, filtered."""

    labelled: str | None = Field(default=None, min_length=1)
    """Pairs whose labels are trusted, on which the estimator is trained: a file, folder, Hub id, or
    world:sums, whose exact judge labels samples of the start policy."""
    labelled_problems: int = Field(default=512, ge=2)
    """Problems of a world that are sampled and labelled."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        is_trained = self.estimator.path is None
        if is_trained and self.labelled is None:
            yield "labelled", "is missing; the estimator learns from pairs with trusted labels"
        if self.replay > 0 and self.labelled is None:
            yield "replay", "there are no labelled pairs; write `labelled: <file>`"
        if self.labelled is not None and not is_trained and self.replay == 0:
            yield "labelled", "nothing reads it beside estimator.path; take one of the two out"
        if (self.labelled or "").startswith("world:") and self.labelled != "world:sums":
            yield "labelled", f"no labelled pairs of {self.labelled}; write world:sums or a file"


class CorrectByExpert(ExpertCorrection):
    """The policy's own answers, corrected sentence by sentence."""

    expert_by: Literal["world", "server"]
    """Who corrects: a rule-based expert of the world, or a language model behind a server."""
    batch_rows: int = Field(default=128, ge=1)
    """Responses drawn at a time; it changes no response."""
    server: Endpoint | None = None
    """Where the expert is served."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if (self.expert_by == "server") != (self.server is not None):
            yield "server", "is given with `expert_by: server`, and only then"


Pipeline = SearchSteps | AnnotateByReference | FilterUncertain | CorrectByExpert
__all__ = [
    "AnnotateByReference",
    "CorrectByExpert",
    "FilterUncertain",
    "OnPolicyAlignment",
    "Pipeline",
    "SearchSteps",
]
