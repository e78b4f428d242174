"""The stages of a loop as a recipe lists them: `each_round: [{run: generate, ...}, ...]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from align.judges.pairwise_llm import PairwiseSettings
from align.policies.endpoint import Endpoint
from align.recipe.base import Conflict, Section
from align.recipe.pipeline_stages import OnPolicyAlignment, Pipeline

# Comparisons that a judge is asked for.
Ask: TypeAlias = Literal["scores", "all_pairs", "tournament", "random_pair"]


class Generate(Section):
    """The policy answers the round's prompts."""

    run: Literal["generate"] = "generate"
    """Which stage."""
    samples: int = Field(default=4, ge=1)
    """Completions per prompt."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of a completion at most; one that does not end by then is left out."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens; 0 takes all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers in this process, or vLLM where it is installed."""
    batch_rows: int = Field(default=128, ge=1)
    """Completions drawn at a time; it changes no sample."""
    server: Endpoint | None = None
    """A fixed policy behind an OpenAI-compatible address, in place of the loop's own."""


class Judge(Section):
    """A judge scores the completions or compares them."""

    run: Literal["judge"] = "judge"
    """Which stage."""
    by: Literal["world", "answers", "reward_model", "llm"]
    """world (exact), answers (a file of known ones), reward_model, or llm (asked pairwise)."""
    ask: Ask | None = None
    """What is asked: scores, all_pairs, tournament (11 for 8 completions), or random_pair, the
    comparison that the select stage draws; null takes what the judge and the select stage need."""
    path: str | None = Field(default=None, min_length=1)
    """Folder or Hub id of the reward model; JSON lines file of {prompt, answer} for answers."""
    pattern: str | None = Field(default=None, min_length=1)
    """Regular expression that finds the answer in a completion; null takes the last number."""
    server: Endpoint | None = None
    """Where the language model that compares is served."""
    how: PairwiseSettings = PairwiseSettings()
    """How the language model is asked."""
    score_scale: float | None = Field(default=None, gt=0)
    """P(a beats b) = sigmoid((score a - score b) / score_scale); null: the higher score surely."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Share of verdicts that may fail before the loop stops; what failed is asked again then."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        wants = {"answers": "path", "reward_model": "path", "llm": "server"}.get(self.by)
        if wants is not None and getattr(self, wants) is None:
            yield wants, f"is missing; `by: {self.by}` needs it"
        for key, readers in (
            ("path", ("answers", "reward_model")),
            ("pattern", ("answers",)),
            ("server", ("llm",)),
        ):
            if getattr(self, key) is not None and self.by not in readers:
                yield key, f"`by: {self.by}` does not read it; take it out"
        if self.by == "llm" and self.ask == "scores":
            yield "ask", "a language model compares; write all_pairs, tournament or random_pair"
        if self.by in ("answers", "reward_model") and self.ask not in (None, "scores"):
            yield "ask", f"`by: {self.by}` scores each completion; write `ask: scores`"


# Field of a rule -> the rules that have it.
_READ_BY = {
    "by": ("best_vs_worst", "all_pairs"),
    "min_margin": ("best_vs_worst", "all_pairs", "tournament"),
    "ties": ("all_pairs",),
    "pairs": ("random_pair",),
    "seed": ("random_pair",),
}


class Select(Section):
    """Pairs are made of the judged completions."""

    run: Literal["select"] = "select"
    """Which stage."""
    rule: Literal["best_vs_worst", "random_pair", "all_pairs", "tournament"]
    """Which two completions make a pair; random_pair is the law of INPO's theorem."""
    by: Literal["win_rate", "score"] | None = None
    """What is compared: win_rate or score; null takes what the judge gave."""
    min_margin: float | None = Field(default=None, ge=0)
    """A pair that is closer is dropped."""
    ties: Literal["drop", "keep"] | None = None
    """What all_pairs does with a pair of which neither is better."""
    pairs: int | None = Field(default=None, ge=1)
    """Pairs that random_pair draws per prompt."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of random_pair's draw."""
    max_characters: int | None = Field(default=None, ge=1)
    """A pair with a longer completion is dropped."""
    max_dropped: float = Field(default=1.0, ge=0, le=1)
    """Share of candidates that may be dropped before the loop stops; ties are candidates."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for key, rules in _READ_BY.items():
            if getattr(self, key) is not None and self.rule not in rules:
                yield key, f"{self.rule} does not read it (only {', '.join(rules)}); take it out"

    def selection(self) -> dict[str, object]:
        """The rule's own node, for `data_pipelines.select`."""
        given = self.model_dump(exclude={"run", "max_dropped"})
        return {key: value for key, value in given.items() if value is not None}


class TrainRound(Section):
    """The policy learns from the round's pairs, as the `train` section says."""

    run: Literal["train"] = "train"
    """Which stage."""
    launch: str | None = Field(default=None, min_length=1)
    """A config of `accelerate launch`, such as recipes/accelerate/ddp.yaml; null: in process."""


class EvaluateRound(Section):
    """The policy is measured, as the `evaluate` section says."""

    run: Literal["evaluate"] = "evaluate"
    """Which stage."""


AnyStage = Annotated[
    Generate | Judge | Select | Pipeline | OnPolicyAlignment | TrainRound | EvaluateRound,
    Field(discriminator="run"),
]
STAGES: dict[str, type[Section]] = {
    member.model_fields["run"].default: member for member in get_args(get_args(AnyStage)[0])
}
