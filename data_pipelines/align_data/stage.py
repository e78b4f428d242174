"""What the stages of all pipelines share: units of work out of artefacts, worked on in chunks.

mcts, agent_q      policy                -> pairs, records
self_reference     completions (policy)  -> pairs, records
uncertainty        completions or judged -> pairs, records
expert_correction  policy                -> pairs, records

A pipeline's node stands in its own folder, `<pipeline>/stage.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from align.data.built import Built
from align.data.messages import Message, Text
from align.data.parquet import quality
from align.data.questions import Candidates, Question
from align.data.records import Record
from align.errors import DataError
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import StageContext, StageNode
from align.node import own_code
from align.servers.endpoint import Endpoint
from align.stages.policies import borrowed_policy
from align.stages.prompts import PromptSource
from align.stages.workshop import Workshop
from align_data.chunks import Engine, InProcess, Work, run_chunks
from align_data.progress import shown
from align_data.settings import PipelineSettings
from align_data.site import Site, engine_of


class PipelineNode(PipelineSettings, StageNode):
    """A pipeline as a stage of a recipe: its settings, and who writes, judges and verifies."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Artefacts; the policy only where it writes."""
        raise NotImplementedError

    @property
    def served(self) -> Endpoint | None:
        """Who writes, annotates or corrects behind a server."""
        return None

    def work(self, site: Site, stack: ExitStack) -> Work:
        """The pipeline's core, made where the chunks are worked on.

        Args:
            site: what it is made of.
            stack: closes what is opened.
        """
        raise NotImplementedError

    def keyed(self) -> dict[str, Any]:
        """What the rows depend on, JSON-ready; not how many are drawn at a time, nor an address."""
        found = self.model_dump(mode="json", exclude={"run", "batch_rows", "server"})
        server = self.served
        if server is not None:
            found["server"] = [server.model, server.revision, dict(server.extra)]
        return found


@dataclass(frozen=True)
class Opening:
    """Makes a pipeline's core ready, here or in another process."""

    node: PipelineNode
    site: Site

    def __call__(self) -> AbstractContextManager[Work]:
        """The core; what it opened is closed afterwards."""
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[Work]:
        with ExitStack() as stack:
            yield self.node.work(self.site, stack)


N = TypeVar("N", bound=PipelineNode)


@dataclass
class PipelineStage(ABC, Generic[N]):
    """Units of work in, pairs and records out; chunk by chunk, resumed where it was cut off.

    Attributes:
        workshop: recipe, start policy and tokenizer.
        node: of the recipe.
    """

    workshop: Workshop
    node: N
    version: int = field(default=1, init=False)
    writes: tuple[str, ...] = field(default=("pairs", "records"), init=False)

    @abstractmethod
    def units(self, context: StageContext) -> Sequence[Record]:
        """Out of the stage's inputs."""

    def identity(self) -> Mapping[str, Any]:
        """What the units depend on besides the artefacts."""
        return {}

    def finish(self, built: Sequence[Built], context: StageContext) -> list[Built]:
        """Chooses among all that the chunks found; here every chunk is final."""
        return list(built)

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.node.run

    @property
    def reads(self) -> tuple[str, ...]:
        """As the node says."""
        return self.node.reads

    def settings(self) -> Mapping[str, Any]:
        """The node, who is behind a server, and what the units depend on."""
        found = self.node.keyed() | {"model": self.workshop.model_settings, **self.identity()}
        code = own_code(self.node)
        return found | {"code": code} if code else found

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes a `BuiltPair` per line, and a record per unit."""
        units = self.units(context)
        engine = engine_of(self.workshop.recipe)
        with ExitStack() as stack, shown(self.name, len(units)) as told:
            built = run_chunks(
                units,
                Opening(self.node, self._site(context, engine, stack)),
                size=self.node.chunk,
                journal=context.scratch / "chunks.jsonl",
                engine=engine,
                told=told,
                check=lambda: context.stop.check("the next chunk"),
            )
        return self._leave(context, self.finish(built, context))

    def _site(self, context: StageContext, engine: Engine, stack: ExitStack) -> Site:
        model = None
        folder = Path(self.workshop.start)
        if "policy" in context.inputs:
            folder = context.input("policy")
            if isinstance(engine, InProcess):
                borrowed = borrowed_policy(context, self.workshop.recipe, self.workshop.start)
                model = stack.enter_context(borrowed)
        return Site(
            self.workshop.recipe,
            self.workshop.start,
            folder,
            context.loop,
            context.seed,
            context.round,
            model,
        )

    def _leave(self, context: StageContext, built: Sequence[Built]) -> Mapping[str, Any]:
        pairs = [pair for one in built for pair in one.pairs]
        lost = Counter(row.reason for one in built for row in one.dropped)
        read = sum(one.read for one in built)
        if read != len(pairs) + sum(lost.values()):
            raise RuntimeError(f"{self.name}: {read} read, {len(pairs)} kept, {lost} dropped")
        if not pairs:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(lost.items()))
            raise DataError(
                f"Round {context.round}: {self.name} makes no pair of {len(built)} units "
                f"({reasons or 'no candidate was found'}). Look at its settings and at the "
                f"records of the units; `align recipe explain` says what each key does."
            )
        write_lines(
            context.output("pairs"), [p.model_dump(mode="json", exclude_none=True) for p in pairs]
        )
        write_lines(
            context.output("records"),
            [
                {
                    "uid": one.uid,
                    "record": one.record,
                    "dropped": [row.model_dump(mode="json") for row in one.dropped],
                }
                for one in built
            ],
        )
        counts: Counter[str] = Counter()
        for one in built:
            counts.update(one.counts)
        return {
            "units": len(built),
            "read": read,
            "kept": len(pairs),
            "dropped": dict(sorted(lost.items())),
            "counts": dict(sorted(counts.items())),
            "quality": quality(pairs, counts),
        }


@dataclass
class QuestionStage(PipelineStage[PipelineNode]):
    """The units are the questions of the round."""

    def __post_init__(self) -> None:
        recipe = self.workshop.recipe
        assert recipe.prompts is not None, "recipes whose stages ask prompts have some"
        self._prompts = PromptSource(recipe.prompts, recipe.data)

    def units(self, context: StageContext) -> Sequence[Question]:
        """The round's prompts with their answers."""
        return self._prompts.questions_of_round(context.round)

    def identity(self) -> Mapping[str, Any]:
        """The prompts."""
        return {"prompts": self._prompts.identity}


@dataclass
class CandidateStage(PipelineStage[PipelineNode]):
    """The units are prompts with the completions of a generate stage."""

    def units(self, context: StageContext) -> Sequence[Candidates]:
        """One per prompt."""
        return candidates(context)


def candidates(context: StageContext) -> list[Candidates]:
    """The different whole completions of each prompt; one with fewer than two has nothing to say.

    A completion that was cut off and kept is no response that a pipeline could compare.
    """
    return [
        Candidates(
            prompt=_prompt(line["prompt"]),
            responses=tuple(
                dict.fromkeys(
                    text
                    for at, text in enumerate(line["completions"])
                    if at not in line["unfinished"]
                )
            ),
            policy=line["sampler"],
            group_id=line["group_id"],
            source=line["source"],
            row=line["row"],
        )
        for line in read_lines(context.input("completions"))
    ]


def _prompt(prompt: Any) -> Text:
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
