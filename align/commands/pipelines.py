# pyright: basic
"""The pipelines as stages: units of work out of artefacts, worked on in chunks, pairs in the end.

mcts               policy                -> pairs, records
self_reference     completions (policy)  -> pairs, records
uncertainty        completions or judged -> pairs, records
expert_correction  policy                -> pairs, records
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from align.commands.artefacts import read_lines, write_lines
from align.commands.policies import borrowed_policy, load_round_policy
from align.commands.progress import ProgressLines
from align.commands.prompts import SCENES, PromptSource
from align.errors import DataError
from align.loops.stage import StageContext
from align.recipe.pipeline_stages import (
    AnnotateByReference,
    CorrectByExpert,
    FilterUncertain,
    SearchSteps,
)
from align.recipe.pipelines.expert_correction import ExpertCorrection
from align.recipe.pipelines.mcts import MCTS
from align.recipe.pipelines.self_reference import SelfReference
from align.recipe.pipelines.uncertainty import Uncertainty
from align.records import Message, Record, content_id
from data_pipelines.bundle import quality
from data_pipelines.chunks import Engine, InProcess, Work, run_chunks
from data_pipelines.ray_engine import RayActors
from data_pipelines.rows import Built, Candidates

logger = logging.getLogger("align")

S = TypeVar("S", bound=BaseModel)
# What changes no row: how many are drawn at a time, and the address of a server.
FREE = {"batch_rows", "server"}


def core(node: BaseModel, settings: type[S]) -> S:
    """The pipeline's own settings out of a stage's node."""
    given = node.model_dump(include=set(settings.model_fields), exclude_unset=True)
    return settings.model_validate(given)


def engine_of(recipe: Any) -> Engine:
    """Who works on the chunks; loops work in process."""
    work = getattr(recipe, "work", None)
    if work is None or work.engine == "local":
        return InProcess()
    return RayActors(work.workers, work.cpus, work.gpus)


@dataclass(frozen=True)
class Site:
    """Where a worker finds what its work is made of; it can be sent to another process.

    Attributes:
        recipe: its model section says how weights are loaded.
        start: folder or hub id of the policy that the loop begins with.
        policy: folder of the newest one.
        loop: the loop's folder, with its call store.
        seed: of the stage.
        round: of the loop.
        model: the policy, where it is in memory.
    """

    recipe: Any
    start: str
    policy: Path
    loop: Path
    seed: int
    round: int
    model: Any | None = None

    def load(self) -> Any:
        """The policy."""
        if self.model is not None:
            return self.model
        return load_round_policy(self.recipe, self.policy, self.start, trainable=False)

    def tokenizer(self) -> Any:
        """Of the policy."""
        from align.commands import load_tokenizer

        return load_tokenizer(self.recipe.model, self.start)

    def limits(self) -> tuple[int, Sequence[int]]:
        """Tokens that the policy takes, and the end tokens of its generation config."""
        from transformers import GenerationConfig

        from align.commands import load_config

        config: Any = load_config(self.recipe.model, self.start).get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or 2**31
        try:
            named: Any = GenerationConfig.from_pretrained(self.start).eos_token_id
        except OSError:
            named = None
        return longest, [named] if isinstance(named, int) else named or []


@dataclass(frozen=True)
class Opening:
    """Makes a pipeline's core ready, here or in another process."""

    build: Callable[[Any, Site, ExitStack], Work]
    node: Any
    site: Site

    def __call__(self) -> AbstractContextManager[Work]:
        """The core; what it opened is closed afterwards."""
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[Work]:
        with ExitStack() as stack:
            yield self.build(self.node, self.site, stack)


@dataclass
class PipelineStage:
    """Units of work in, pairs and records out; chunk by chunk, resumed where it was cut off.

    Attributes:
        workshop: recipe, start policy and tokenizer.
        node: of the recipe.
        settings_type: the pipeline's own settings.
        units: reads the units out of the stage's inputs.
        build: makes the pipeline's core.
        reads: artefacts; the policy only where it writes.
        identity: what the units depend on besides the artefacts.
        finish: chooses among all that the chunks found; None where every chunk is final.
    """

    workshop: Any
    node: Any
    settings_type: type[BaseModel]
    units: Callable[[StageContext], Sequence[Record]]
    build: Callable[[Any, Site, ExitStack], Work]
    reads: tuple[str, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Sequence[Built], StageContext], list[Built]] | None = None
    version: int = field(default=1, init=False)
    writes: tuple[str, ...] = field(default=("pairs", "records"), init=False)

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.node.run

    def settings(self) -> Mapping[str, Any]:
        """The node, who is behind a server, and what the units depend on."""
        nested = {"estimator": {"batch_rows"}} if isinstance(self.node, FilterUncertain) else {}
        free = dict.fromkeys(("run", *FREE), True) | nested
        node = self.node.model_dump(mode="json", exclude=free)
        server = getattr(self.node, "server", None)
        if server is not None:
            node["server"] = [server.model, server.revision, dict(server.extra)]
        return node | {"model": self.workshop.model_settings, **self.identity}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes a `BuiltPair` per line, and a record per unit."""
        units = self.units(context)
        engine = engine_of(self.workshop.recipe)
        with ExitStack() as stack, ProgressLines(self.name) as told:
            built = run_chunks(
                units,
                Opening(self.build, self.node, self._site(context, engine, stack)),
                size=self.node.chunk,
                journal=context.scratch / "chunks.jsonl",
                engine=engine,
                told=told,
                check=lambda: context.stop.check("the next chunk"),
            )
        if self.finish is not None:
            built = self.finish(built, context)
        return self._leave(context, built)

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


def pipeline_stage(workshop: Any, node: Any) -> PipelineStage:
    """The stage of a pipeline's node."""
    match node:
        case SearchSteps():
            prompts = PromptSource(workshop.recipe.prompts, workshop.recipe.data)
            return PipelineStage(
                workshop,
                node,
                MCTS,
                lambda context: prompts.questions_of_round(context.round),
                _search,
                () if node.server is not None else ("policy",),
                {"prompts": prompts.identity},
            )
        case AnnotateByReference():
            return PipelineStage(
                workshop,
                node,
                SelfReference,
                candidates,
                _annotation,
                ("completions", "policy") if node.annotator == "policy" else ("completions",),
            )
        case FilterUncertain():
            from align.commands.uncertainty import Filtering

            filtering = Filtering(workshop, node)
            return PipelineStage(
                workshop,
                node,
                Uncertainty,
                filtering.units,
                filtering.build,
                filtering.reads,
                filtering.identity,
                filtering.finish,
            )
        case CorrectByExpert():
            prompts = PromptSource(workshop.recipe.prompts, workshop.recipe.data)
            return PipelineStage(
                workshop,
                node,
                ExpertCorrection,
                lambda context: prompts.questions_of_round(context.round),
                _correction,
                ("policy",),
                {"prompts": prompts.identity},
            )
    raise TypeError(f"no pipeline {type(node).__name__}")


def _search(node: SearchSteps, site: Site, stack: ExitStack) -> Work:
    from data_pipelines.mcts.verify import KnownAnswerVerifier, SumsVerifier
    from data_pipelines.mcts.work import MCTSWork

    settings = core(node, MCTS)
    verifier: Any = SumsVerifier()
    if node.verify == "answers":
        verifier = KnownAnswerVerifier(*([node.pattern] if node.pattern else []))
    return MCTSWork(
        settings,
        _writer(node, site, stack),
        verifier,
        seed=site.seed,
        config_hash=config_hash(settings),
        round=site.round,
    )


def _annotation(node: AnnotateByReference, site: Site, stack: ExitStack) -> Work:
    from data_pipelines.self_reference.work import SelfReferenceWork

    settings = core(node, SelfReference)
    annotator, scorer = _annotator(node, site, stack)
    return SelfReferenceWork(
        settings,
        annotator,
        scorer if settings.needs_scorer else None,
        seed=site.seed,
        config_hash=config_hash(settings),
        round=site.round,
    )


def _correction(node: CorrectByExpert, site: Site, stack: ExitStack) -> Work:
    from align.policies.in_process import InProcessPolicy
    from align.policies.local_tokens import LocalTokens
    from data_pipelines.expert_correction.work import ExpertCorrectionWork

    settings = core(node, ExpertCorrection)
    tokenizer = site.tokenizer()
    expert: Any
    if node.server is not None:
        from align.commands.engines import cached_caller
        from align.policies.openai_http import HttpPolicy

        expert = HttpPolicy(stack.enter_context(cached_caller(node.server, site.loop)))
    elif site.recipe.prompts.source == SCENES:
        from data_pipelines.expert_correction.scenes import ScenesExpert

        expert = ScenesExpert()
    else:
        from data_pipelines.expert_correction.world import SumsExpert

        expert = SumsExpert()
    return ExpertCorrectionWork(
        settings,
        expert,
        LocalTokens(tokenizer, site.limits()[1]),
        InProcessPolicy(site.load(), tokenizer, rows=node.batch_rows),
        seed=site.seed,
        config_hash=config_hash(settings),
        round=site.round,
    )


def _annotator(node: AnnotateByReference, site: Site, stack: ExitStack) -> tuple[Any, Any]:
    if node.annotator == "world":
        from data_pipelines.self_reference.world import SumsAnnotator

        rules = SumsAnnotator()
        return rules, rules
    if node.server is not None:
        from align.commands.engines import cached_caller
        from align.policies.openai_http import HttpPolicy

        return HttpPolicy(stack.enter_context(cached_caller(node.server, site.loop))), None
    from align.policies.in_process import InProcessPolicy
    from align.policies.token_writer import InProcessWriter

    model, tokenizer = site.load(), site.tokenizer()
    return (
        InProcessPolicy(model, tokenizer, rows=node.batch_rows),
        InProcessWriter(model, tokenizer, rows=node.batch_rows),
    )


def _writer(node: SearchSteps, site: Site, stack: ExitStack) -> Any:
    if node.server is not None:
        from align.commands.engines import cached_caller
        from align.policies.http_writer import HttpWriter

        caller = stack.enter_context(cached_caller(node.server, site.loop))
        context, ends = site.limits()
        return HttpWriter(caller, site.tokenizer(), context=context, ends=ends)
    from align.policies.token_writer import InProcessWriter

    return InProcessWriter(site.load(), site.tokenizer(), rows=node.batch_rows)


def config_hash(settings: BaseModel) -> str:
    """16 hex digits of a pipeline's own settings."""
    return content_id(settings.model_dump(mode="json"))


def candidates(context: StageContext) -> list[Candidates]:
    """The different completions of each prompt; a prompt with fewer than two has nothing to say."""
    return [
        Candidates(
            prompt=_prompt(line["prompt"]),
            responses=tuple(dict.fromkeys(line["completions"])),
            policy=line["sampler"],
            group_id=line["group_id"],
            source=line["source"],
            row=line["row"],
        )
        for line in read_lines(context.input("completions"))
    ]


def _prompt(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
