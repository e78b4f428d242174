"""Evaluations as a recipe lists them: `evaluations: [{run: alpaca_eval, ...}, ...]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from align.judges.pairwise_llm import PairwiseSettings
from align.loops.gate import Limits
from align.policies.base import Sampling
from align.policies.endpoint import Endpoint
from align.recipe.base import Conflict, Section

NonEmpty: TypeAlias = Annotated[str, Field(min_length=1)]

# As both benchmarks are usually run: the likeliest token, and room for a long answer.
GREEDY = Sampling(max_new_tokens=2048, temperature=0.0)


class AlpacaEval(Section):
    """AlpacaEval 2: win rate against the baseline's outputs, raw and at equal length."""

    run: Literal["alpaca_eval"] = "alpaca_eval"
    """Which evaluation."""
    reference_outputs: NonEmpty
    """The baseline's model_outputs.json; its instructions are what is asked."""
    outputs: NonEmpty | None = None
    """The model's model_outputs.json; null lets the recipe's model write them."""
    generator: str | None = Field(default=None, min_length=1)
    """The model's name in tables; null takes what `outputs` says, or the recipe's model."""
    sampling: Sampling = GREEDY
    """How the recipe's model writes its outputs."""
    annotator: Endpoint
    """Where the language model that judges is served."""
    annotator_name: str | None = Field(default=None, min_length=1)
    """The annotator's name in the annotations; null takes the served model's."""
    reading: Literal["logprobs", "text"] = "logprobs"
    """What of the judge's answer counts: its first token's log-probs (the official way; vLLM gives
    them), or the name that it writes (any server; wins and losses only)."""
    runner: Literal["auto", "package", "own"] = "auto"
    """What scores: the alpaca-eval package, our own code, or the package where it is installed."""
    gamed: NonEmpty | None = None
    """df_gamed.csv of tatsu-lab/alpaca_eval, without which no length-controlled win rate is
    official."""
    difficulty: NonEmpty | None = None
    """instruction_difficulty.csv, or a table of its kind, for an offline estimate."""
    limits: Limits = Limits()
    """How hard the annotator is asked, and how long."""
    seed: int = Field(default=0, ge=0)
    """Seed of the model's outputs."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of instructions that may fail before there is no score."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.gamed is not None and self.difficulty is not None:
            yield "difficulty", "df_gamed.csv holds the difficulties too; keep one of the two"


class ArenaHard(Section):
    """Arena-Hard-Auto: both games per question against the version's baseline."""

    run: Literal["arena_hard"] = "arena_hard"
    """Which evaluation."""
    version: Literal["v0.1", "v2.0"]
    """Of the benchmark; says the baselines, the categories and the interval."""
    questions: NonEmpty
    """The version's question.jsonl."""
    baseline_answers: tuple[NonEmpty, ...] = Field(min_length=1)
    """The baselines' model_answer files, one per baseline."""
    answers: NonEmpty | None = None
    """The model's model_answer file; null lets the recipe's model write it."""
    model: str | None = Field(default=None, min_length=1)
    """The model's name in tables; null takes what `answers` says, or the recipe's model."""
    sampling: Sampling = GREEDY
    """How the recipe's model writes its answers."""
    annotator: Endpoint
    """Where the language model that judges is served."""
    max_new_tokens: int = Field(default=16000, ge=16)
    """Of a judge's answer."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge."""
    categories: tuple[str, ...] | None = None
    """Judge only these; null takes all that the questions have."""
    style_control: bool = False
    """Also report the score at equal style; the answers need style counts or a tokenizer."""
    tokenizer: NonEmpty | None = None
    """Folder or Hub id of the tokenizer that counts lengths where an answer has no metadata."""
    resamples: int = Field(default=100, ge=10)
    """Of the bootstrap."""
    limits: Limits = Limits()
    """How hard the annotator is asked, and how long."""
    seed: int = Field(default=0, ge=0)
    """Seed of the model's answers and of the bootstrap."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of questions that may fail before there is no score."""


class WinRate(Section):
    """Our own comparison of two models on the same prompts, both orders asked."""

    run: Literal["win_rate"] = "win_rate"
    """Which evaluation."""
    against: NonEmpty
    """The opponent's outputs: rows with instruction and output."""
    outputs: NonEmpty | None = None
    """The model's outputs; null lets the recipe's model answer the opponent's instructions."""
    name: str | None = Field(default=None, min_length=1)
    """The model's name in tables; null takes what `outputs` says, or the recipe's model."""
    sampling: Sampling = GREEDY
    """How the recipe's model writes its outputs."""
    annotator: Endpoint
    """Where the language model that judges is served."""
    how: PairwiseSettings = PairwiseSettings()
    """How it is asked."""
    resamples: int = Field(default=1000, ge=10)
    """Of the bootstrap."""
    limits: Limits = Limits()
    """How hard the annotator is asked, and how long."""
    seed: int = Field(default=0, ge=0)
    """Seed of the model's outputs and of the bootstrap."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of comparisons that may fail before there is no score."""


class Tasks(Section):
    """Verifiable tasks: accuracy by a strict and by a flexible reading of the answer."""

    run: Literal["tasks"] = "tasks"
    """Which evaluation."""
    tasks: tuple[NonEmpty, ...] = Field(min_length=1)
    """Built-in tasks (sums, styles, gsm8k) or YAML files of one's own."""
    files: Mapping[str, NonEmpty] = {}
    """Task -> file with its questions, for tasks that read one, such as gsm8k."""
    n: int | None = Field(default=None, ge=1)
    """Questions of each task at most, the first ones; null takes all, and 256 of a world."""
    seed: int = Field(default=0, ge=0)
    """Seed of a world's questions and of the samples."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of questions whose answer may be missing for another reason than the model's own before
    there is no score."""


AnyEvaluation = Annotated[AlpacaEval | ArenaHard | WinRate | Tasks, Field(discriminator="run")]
EVALUATIONS: dict[str, type[Section]] = {
    member.model_fields["run"].default: member for member in get_args(get_args(AnyEvaluation)[0])
}
