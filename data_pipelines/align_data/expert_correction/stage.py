"""Expert correction as a stage: questions in, own answers against corrected ones out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Literal

from pydantic import Field

from align.loops.stage import Stage
from align.node import Conflict
from align.policies.base import Policy
from align.policies.in_process import InProcessPolicy
from align.policies.local_tokens import LocalTokens
from align.policies.openai_http import HttpPolicy
from align.servers.endpoint import Endpoint
from align.stages.workshop import Workshop
from align_data.expert_correction.scenes import ScenesExpert
from align_data.expert_correction.settings import ExpertCorrectionSettings
from align_data.expert_correction.work import ExpertCorrectionWork
from align_data.expert_correction.world import SumsExpert
from align_data.site import Site, of_world, source_of
from align_data.stage import PipelineNode, QuestionStage

# World -> its rule-based expert.
EXPERTS: Mapping[str, type[Policy]] = {"sums": SumsExpert, "scenes": ScenesExpert}


class ExpertCorrection(ExpertCorrectionSettings, PipelineNode):
    """The policy's own answers, corrected sentence by sentence."""

    run: Literal["expert_correction"] = "expert_correction"
    """Which stage."""
    expert_by: Literal["world", "server"]
    """Who corrects: a rule-based expert of the world, or a language model behind a server."""
    batch_rows: int = Field(default=128, ge=1)
    """Responses drawn at a time; it changes no response."""
    server: Endpoint | None = None
    """Where the expert is served."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if (self.expert_by == "server") != (self.server is not None):
            yield "server", "is given with `expert_by: server`, and only then"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("policy",)

    @property
    def served(self) -> Endpoint | None:
        return self.server

    def stage(self, workshop: Workshop) -> Stage:
        if self.expert_by == "world":
            _of_world(source_of(workshop.recipe))  # better refused now than in the first chunk
        return QuestionStage(workshop, self)

    def work(self, site: Site, stack: ExitStack) -> ExpertCorrectionWork:
        tokenizer = site.tokenizer()
        return ExpertCorrectionWork(
            self,
            self._expert(site, stack),
            LocalTokens(tokenizer, site.limits()[1]),
            InProcessPolicy(site.load(), tokenizer, rows=self.batch_rows),
            seed=site.seed,
            config_hash=self.config_hash,
            round=site.round,
        )

    def _expert(self, site: Site, stack: ExitStack) -> Policy:
        if self.server is not None:
            return HttpPolicy(site.caller(self.server, stack))
        return _of_world(site.prompts)()


def _of_world(prompts: str) -> type[Policy]:
    return of_world(EXPERTS, prompts, "expert_by", "server")
