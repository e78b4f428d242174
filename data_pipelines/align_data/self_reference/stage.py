"""Self-reference feedback as a stage: completions of a prompt in, compared ones out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Literal

from pydantic import Field

from align.loops.stage import Stage
from align.node import Conflict
from align.policies.base import Policy
from align.policies.in_process import InProcessPolicy
from align.policies.openai_http import HttpPolicy
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Writer
from align.servers.endpoint import Endpoint
from align.stages.workshop import Workshop
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.work import SelfReferenceWork
from align_data.self_reference.world import SumsAnnotator
from align_data.site import Site, of_world, source_of
from align_data.stage import CandidateStage, PipelineNode

# World -> its rule-based annotator, which also scores.
ANNOTATORS: Mapping[str, type[SumsAnnotator]] = {"sums": SumsAnnotator}


class SelfReference(SelfReferenceSettings, PipelineNode):
    """Completions of the generate stage, compared by an annotator that has answered itself."""

    run: Literal["self_reference"] = "self_reference"
    """Which stage."""
    annotator: Literal["policy", "world", "server"] = "policy"
    """Who annotates: the policy itself, a rule-based annotator of the world, or a server."""
    batch_rows: int = Field(default=128, ge=1)
    """Texts drawn at a time; it changes no text."""
    server: Endpoint | None = None
    """Where the annotator is served. Its log-probs are not read: write `strength: votes`."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if (self.annotator == "server") != (self.server is not None):
            yield "server", "is given with `annotator: server`, and only then"
        if self.annotator == "server" and self.needs_scorer:
            yield "strength", "a server gives no log-probs; write `strength: votes`"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("completions", "policy") if self.annotator == "policy" else ("completions",)

    @property
    def served(self) -> Endpoint | None:
        return self.server

    def stage(self, workshop: Workshop) -> Stage:
        if self.annotator == "world":
            _of_world(source_of(workshop.recipe))  # better refused now than in the first chunk
        return CandidateStage(workshop, self)

    def work(self, site: Site, stack: ExitStack) -> SelfReferenceWork:
        annotator, scorer = self._annotator(site, stack)
        return SelfReferenceWork(
            self,
            annotator,
            scorer if self.needs_scorer else None,
            seed=site.seed,
            config_hash=self.config_hash,
            round=site.round,
        )

    def _annotator(self, site: Site, stack: ExitStack) -> tuple[Policy, Writer | None]:
        if self.annotator == "world":
            rules = _of_world(site.prompts)()
            return rules, rules
        if self.server is not None:
            return HttpPolicy(site.caller(self.server, stack)), None
        model, tokenizer = site.load(), site.tokenizer()
        return (
            InProcessPolicy(model, tokenizer, rows=self.batch_rows),
            InProcessWriter(model, tokenizer, rows=self.batch_rows),
        )


def _of_world(prompts: str) -> type[SumsAnnotator]:
    return of_world(ANNOTATORS, prompts, "annotator", "policy")
