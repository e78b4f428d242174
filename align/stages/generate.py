"""The policy answers the round's prompts: policy -> completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from align import registry
from align.data.completions import Completion
from align.data.prompts import Prompt
from align.errors import DataError, RecipeError
from align.loops.artefacts import write_lines
from align.loops.stage import StageContext, StageNode
from align.node import Conflict
from align.policies.base import Failed, Policy, Sampling
from align.policies.engines import Loading, opened, problem_with
from align.policies.openai_http import HttpPolicy
from align.servers.cached import cached_caller
from align.servers.endpoint import Endpoint
from align.stages.policies import borrowed_policy
from align.stages.prompts import CURRICULUM, PromptSource
from align.stages.select import select_of
from align.stages.workshop import Workshop


class Generate(StageNode):
    """The policy answers the round's prompts."""

    run: Literal["generate"] = "generate"
    """Which stage."""
    samples: int = Field(default=4, ge=1)
    """Completions per prompt."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of a completion at most."""
    keep_unfinished: bool = False
    """Keep a completion that does not end by then: it is judged, and pairs with it train no end
    token on its side. Else it is left out, and counted."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens; 0 takes all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    hinted: int = Field(default=0, ge=0)
    """Of the samples, so many are drawn behind a demonstration of the prompt's source (a world's
    own, or the rows' column `hint`); they are kept as answers to the prompt alone, so what the
    policy can do when shown becomes what it is trained to do unshown."""
    greedy: bool = False
    """Draw the likeliest answer too, beside the samples: it is judged and never trained on; the
    rule groups measures advantages from it (`advantage: greedy`)."""
    engine: str = Field(default="transformers", min_length=1)
    """What generates: transformers in this process, vllm where it is installed, or an engine of
    one's own as file.py:function."""
    batch_rows: int = Field(default=128, ge=1)
    """Completions drawn at a time; it changes no sample."""
    server: Endpoint | None = None
    """A fixed policy behind an OpenAI-compatible address, in place of the loop's own."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if (problem := problem_with(self.engine)) is not None:
            yield "engine", problem
        if self.hinted > self.samples:
            yield "hinted", f"only {self.samples} samples are drawn; write at most so many"

    def look_ahead(self, workshop: Workshop) -> None:
        """Whether anything reads the likeliest answer.

        Raises:
            RecipeError: nothing does, so it would be taken for a sample.
        """
        select = select_of(workshop.nodes)
        if self.greedy and getattr(select, "advantage", None) != "greedy":
            raise RecipeError(
                "The generate stage draws the likeliest answers (`greedy: true`), and nothing "
                "reads them: write `{run: select, rule: groups, advantage: greedy}`, or take "
                "`greedy` out."
            )

    def stage(self, workshop: Workshop) -> GenerateStage:
        """The stage."""
        return GenerateStage(workshop, self)


@dataclass
class GenerateStage:
    """The policy answers the round's prompts."""

    workshop: Workshop
    node: Generate
    name: str = field(default="generate", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        recipe = self.workshop.recipe
        assert recipe.prompts is not None
        self.prompts = PromptSource(recipe.prompts, recipe.data)

    @property
    def states(self) -> tuple[str, ...]:
        """What is learned from each source of the prompts, where a curriculum heeds it."""
        return () if self.prompts.section.curriculum is None else (CURRICULUM,)

    @property
    def reads(self) -> tuple[str, ...]:
        """The policy, unless another one behind a server answers."""
        return (*(("policy",) if self.node.server is None else ()), *self.states)

    @property
    def writes(self) -> tuple[str, ...]:
        """The completions, and which sources were asked."""
        return ("completions", *self.states)

    def settings(self) -> Mapping[str, Any]:
        """The node, the prompts, and how the policy's weights are loaded."""
        without = {"run", "batch_rows", "server"}
        node = self.node.model_dump(mode="json", exclude=without)
        server = self.node.server
        if server is not None:
            node["server"] = [server.base_url, server.model, server.revision, dict(server.extra)]
        elif registry.is_path(self.node.engine):
            node["code"] = registry.find("policy", self.node.engine).code
        if not self.node.greedy:
            # Loops that were begun before there was this key keep their stages.
            del node["greedy"]
        if self.node.hinted:
            node["hints"] = self.prompts.columns_digest()
        return node | {"prompts": self.prompts.identity, "model": self.workshop.model_settings}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one line per prompt."""
        node = self.node
        prompts, shared = self._asked(context)
        sampling = Sampling(
            max_new_tokens=node.max_new_tokens,
            temperature=node.temperature,
            top_p=node.top_p,
            top_k=node.top_k,
            stop=node.stop,
            keep_unfinished=node.keep_unfinished,
        )
        with self._policy(context) as policy:
            answers = policy.generate(prompts, node.samples - node.hinted, sampling, context.seed)
            if node.hinted:
                shown = self.prompts.hinted(prompts)
                behind = policy.generate(shown, node.hinted, sampling, context.seed)
                answers = [[*of, *more] for of, more in zip(answers, behind, strict=True)]
            if node.greedy:
                likeliest = policy.generate(
                    prompts, 1, sampling.model_copy(update={"temperature": 0.0}), context.seed
                )
                answers = [[*of, *one] for of, one in zip(answers, likeliest, strict=True)]
            sampler = policy.identity
        failures = Counter(a.reason for of in answers for a in of if isinstance(a, Failed))
        kept = [[a for a in of if isinstance(a, Completion)] for of in answers]
        written = sum(map(len, kept))
        if not written:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(failures.items()))
            raise DataError(
                f"Round {context.round}: none of {len(prompts) * node.samples} completions can be "
                f"used ({reasons or 'no reason given'}). Raise max_new_tokens in the generate "
                "stage, say keep_unfinished there, or look at the prompts."
            )
        lines = [
            {
                **prompt.model_dump(mode="json"),
                "sampler": sampler,
                "completions": [_text(a) for a in texts],
                "unfinished": [at for at, a in enumerate(texts) if not a.finished],
                **({"greedy": _greedy_place(of, texts)} if node.greedy else {}),
                "failures": [
                    f"sample {a.sample}: {a.reason} ({a.detail})"
                    for a in of
                    if isinstance(a, Failed)
                ],
            }
            for prompt, of, texts in zip(prompts, answers, kept, strict=True)
        ]
        write_lines(context.output("completions"), lines)
        return {
            **self.prompts.counts(),
            "prompts": len(prompts),
            **shared,
            "completions": written,
            "unfinished": sum(not a.finished for of in kept for a in of),
            "failed": dict(sorted(failures.items())),
            "policy": sampler,
        }

    def _asked(self, context: StageContext) -> tuple[list[Prompt], dict[str, Any]]:
        """The round's prompts, and for the ledger how they were shared out between sources."""
        if not self.states:
            return self.prompts.of_round(context.round), {}
        prompts, state = self.prompts.by_curriculum(context.state(CURRICULUM))
        context.remember(CURRICULUM, state)
        asked = Counter(state["asked"])
        of_sources = {f"share_{name}": share for name, share in state["share"].items()}
        return prompts, {"asked": {name: asked[name] for name in state["share"]}, **of_sources}

    @contextmanager
    def _policy(self, context: StageContext) -> Iterator[Policy]:
        if self.node.server is not None:
            with cached_caller(self.node.server, context.loop) as caller:
                yield HttpPolicy(caller)
            return
        workshop = self.workshop
        loading = Loading(
            context.input("policy"),
            lambda: borrowed_policy(context, workshop.recipe, workshop.start),
            workshop.tokenizer,
            self.node.batch_rows,
        )
        with opened(self.node.engine, loading) as policy:
            yield policy


def _greedy_place(answers: Sequence[Completion | Failed], kept: Sequence[Completion]) -> int | None:
    """Of the likeliest answer, the last to be drawn, among those that are kept."""
    return len(kept) - 1 if isinstance(answers[-1], Completion) else None


def _text(completion: Completion) -> str:
    written = completion.completion
    return written if isinstance(written, str) else written[-1].content
