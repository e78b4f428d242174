"""The two tree searches as stages: questions in, pairs over sibling steps out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from pydantic import Field

from align.errors import DataError
from align.judges.rule import LAST_NUMBER
from align.loops.stage import Stage
from align.node import Conflict
from align.policies.http_writer import HttpWriter
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Writer
from align.servers.endpoint import Endpoint
from align.stages.prompts import PromptSource
from align.stages.workshop import Workshop
from align_data.mcts.settings import AgentQSettings, Search, XieSettings
from align_data.mcts.show import tree_as_html, tree_as_text
from align_data.mcts.verify import KnownAnswerVerifier, SumsVerifier, Verifier
from align_data.mcts.work import MCTSWork
from align_data.site import Site, of_world, source_of
from align_data.stage import PipelineNode, QuestionStage

# World -> what knows whether an answer is right.
VERIFIERS: Mapping[str, type[Verifier]] = {"sums": SumsVerifier}


class SearchNode(PipelineNode):
    """What both searches have as stages: who writes the steps, and who checks the answers."""

    verify: Literal["world", "answers"]
    """Who knows whether an answer is right: world (exact), or answers, which the prompts bring."""
    pattern: str | None = Field(default=None, min_length=1)
    """Regular expression that finds the answer in a response; null takes the last number."""
    batch_rows: int = Field(default=128, ge=1)
    """Steps drawn at a time; it changes no step."""
    server: Endpoint | None = None
    """Weights behind an OpenAI-compatible completions address, in place of the policy in process;
    model.model_name_or_path then names their tokenizer."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.verify == "world" and self.pattern is not None:
            yield "pattern", "`verify: world` does not read it; take it out"

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.server is not None else ("policy",)

    @property
    def served(self) -> Endpoint | None:
        return self.server

    def stage(self, workshop: Workshop) -> Stage:
        self.verifier(source_of(workshop.recipe))  # better refused now than in the first chunk
        return QuestionStage(workshop, self)

    def look_ahead(self, workshop: Workshop) -> None:
        """Whether the prompts bring answers, where these are to be checked against.

        Raises:
            DataError: none of the first round does.
        """
        recipe = workshop.recipe
        assert recipe.prompts is not None, "recipes whose stages ask prompts have some"
        if self.verify == "world":
            return
        asked = PromptSource(recipe.prompts, recipe.data).questions_of_round(1)
        if not any(question.answer is not None for question in asked):
            raise DataError(
                f"`verify: answers` needs known answers, and none of the {len(asked)} prompts of "
                f"{recipe.prompts.source} brings one: give the rows a column `answer` (GSM8K's own "
                "rows have it), or name it by prompts.columns."
            )

    def verifier(self, prompts: str) -> Verifier:
        """Checks answers to the prompts of a source.

        Raises:
            RecipeError: they come from no world that has one, or `pattern` is no expression.
        """
        if self.verify == "answers":
            return KnownAnswerVerifier(self.pattern or LAST_NUMBER)
        return of_world(VERIFIERS, prompts, "verify", "answers")()

    @staticmethod
    def show(record: Mapping[str, Any], *, as_html: bool) -> str:
        """One record of the stage to look at: a tree."""
        return tree_as_html(record) if as_html else tree_as_text(record)

    def searching(self, settings: Search, site: Site, stack: ExitStack) -> MCTSWork:
        """The core of either search."""
        return MCTSWork(
            settings,
            self._writer(site, stack),
            self.verifier(site.prompts),
            seed=site.seed,
            config_hash=settings.config_hash,
            round=site.round,
        )

    def _writer(self, site: Site, stack: ExitStack) -> Writer:
        if self.server is not None:
            caller = site.caller(self.server, stack)
            context, ends = site.limits()
            return HttpWriter(caller, site.tokenizer(), context=context, ends=ends)
        return InProcessWriter(site.load(), site.tokenizer(), rows=self.batch_rows)


class MCTS(XieSettings, SearchNode):
    """A tree search over the steps of an answer, by Xie et al.; sibling steps become pairs.

    arXiv 2405.00451: PUCT, self-evaluation, the path is committed to step by step.
    """

    run: Literal["mcts"] = "mcts"
    """Which stage."""

    def work(self, site: Site, stack: ExitStack) -> MCTSWork:
        return self.searching(self, site, stack)


class AgentQ(AgentQSettings, SearchNode):
    """A tree search over the steps of an answer, by Agent Q; sibling steps become pairs.

    arXiv 2408.07199: UCB1, a critic's ranking mixed with rollouts, one search from the question.
    """

    run: Literal["agent_q"] = "agent_q"
    """Which stage."""

    def work(self, site: Site, stack: ExitStack) -> MCTSWork:
        return self.searching(self, site, stack)
