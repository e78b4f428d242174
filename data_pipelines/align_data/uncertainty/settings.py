"""What the filter of reliable pairs is told.

Wang et al. 2024, UPO (arXiv 2409.11212), and its program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field

from align.judges.base import JudgeNode
from align.judges.by import JudgedBy
from align.node import Conflict, Node
from align.unions import Open
from align_data.settings import PipelineSettings

# In this order, once each.
PLACES = ("query", "first", "second")
PLACE = re.compile(r"\{(query|first|second)\}")
DEFAULT_TEMPLATE = (
    "Two assistants answered the same query. Which answer helps its author more, and does no harm?"
    "\n\nQuery:\n{query}\n\nAnswer 1:\n{first}\n\nAnswer 2:\n{second}"
)

# Three judges once shared one class with these keys, and draws stay keyed by what that class held.
_ALWAYS_HASHED: Mapping[str, Any] = MappingProxyType({"path": None, "pattern": None, "flips": 0.0})


class Rewards(JudgedBy):
    """What scores the responses: any judge that does, with its own keys beside this one."""

    flips: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts for which a world's scores are turned over, to see what the filter makes
    of wrong ones."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.by != "world" and self.flips > 0:
            yield "flips", "only a world's exact scores can be turned over; take it out"
        if self.judge.gives == "comparisons":
            yield "by", f"{self.by} compares two responses; name a judge that scores one"
        if self.judge.adapts:
            yield "adapt", "only the judge of a stage remembers rounds; write the weights"

    @property
    def judge(self) -> JudgeNode:
        """The same value as the settings of its judge."""
        return cast("JudgeNode", self)

    def hashed(self) -> dict[str, Any]:
        """The keys that are not at their default, beside those that were hashed from the first."""
        given = self.model_dump(mode="json", exclude_defaults=True)
        return {**_ALWAYS_HASHED, "by": self.by, **given}


class Lora(Node):
    """A low-rank adapter on every linear layer of the backbone; the head is trained in full."""

    r: int = Field(default=8, ge=1)
    """Rank."""
    alpha: int = Field(default=16, ge=1)
    """Scale: alpha / r multiplies the adapter's output."""


class Classifier(Node):
    """Reads two answers in one text and says which is better; trained on labelled pairs."""

    kind: Literal["classifier"] = "classifier"
    """Which estimator."""
    backbone: str = Field(default="start", min_length=1)
    """Whose weights it begins with: start, a path, or id@revision; in a loop round_start too, and
    then it is trained anew each round."""
    path: str | None = Field(default=None, min_length=1)
    """Folder of a trained estimator; nothing is trained then."""
    lora: Lora | None = Lora()
    """The adapter that is trained; null trains all weights."""
    dropout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the units that a pass leaves out, at estimation."""
    train_dropout: float | None = Field(default=None, ge=0, lt=1)
    """The same while training; null takes `dropout`."""
    dropout_in: Literal["adapter", "blocks", "head"] = "adapter"
    """Where units are left out: of the adapter's inputs, of what each block adds, or of what the
    head reads."""
    dropout_blocks: int | None = Field(default=None, ge=1)
    """Only in so many of the topmost blocks: those below are computed once for all passes. null:
    in all."""
    template: str | None = Field(default=DEFAULT_TEMPLATE, min_length=1)
    """What it reads; {query}, {first} and {second} stand in it once each, in this order. null: the
    backbone's own chat template, as if the query had been asked and answered twice."""
    max_length: int = Field(default=2048, ge=16)
    """Tokens of the whole text at most; a pair that is longer is dropped, never cut."""
    learning_rate: float = Field(default=2e-5, gt=0, le=1)
    """Peak; linear decay to 0."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the labelled pairs."""
    pairs_per_step: int = Field(default=4, ge=1)
    """Labelled pairs per optimizer step; each is read in both orders."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts whose labelled pairs measure the estimator and train nothing."""
    batch_rows: int = Field(default=32, ge=1)
    """Texts of one forward pass at estimation; changes nothing but rounding."""
    seed: int = Field(default=0, ge=0)
    """Of the head's first weights, the order of the pairs and the dropout while training."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.lora is None and self.dropout_in == "adapter":
            yield "dropout_in", "there is no adapter; write `blocks` or `head`"
        if self.dropout_in == "head" and self.dropout_blocks is not None:
            yield "dropout_blocks", "`dropout_in: head` leaves all blocks whole; take it out"
        if self.template is None:
            return
        if tuple(PLACE.findall(self.template)) != PLACES:
            yield "template", "write each of {query}, {first} and {second} once, in this order"
        elif not self.template.endswith("{second}"):
            yield "template", "it must end with {second}; put what is to be said in front"


class Likelihood(Node):
    """Says how much likelier the backbone finds one answer than the other; only a scale is fitted.

    Not the paper's: for models too small to learn to read two answers at once, or to go without
    training.
    """

    kind: Literal["likelihood"] = "likelihood"
    """Which estimator."""
    backbone: str = Field(default="start", min_length=1)
    """Whose log-probs are compared: start, a path, or id@revision; in a loop round_start too."""
    path: str | None = Field(default=None, min_length=1)
    """Folder of a fitted estimator; nothing is fitted then."""
    dropout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the units that a pass leaves out."""
    dropout_in: Literal["blocks", "head"] = "blocks"
    """Where units are left out: of what each block adds, or of what the head reads."""
    dropout_blocks: int | None = Field(default=None, ge=1)
    """Only in so many of the topmost blocks: those below are computed once for all passes. null:
    in all."""
    max_length: int = Field(default=2048, ge=16)
    """Tokens of query and answer at most; a pair with a longer one is dropped, never cut."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts whose labelled pairs measure the estimator and fit nothing."""
    batch_rows: int = Field(default=32, ge=1)
    """Answers of one forward pass; changes nothing but rounding."""
    seed: int = Field(default=0, ge=0)
    """Of the prompts that are held out."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.dropout_in == "head" and self.dropout_blocks is not None:
            yield "dropout_blocks", "`dropout_in: head` leaves all blocks whole; take it out"


AnyEstimator: TypeAlias = Annotated[Classifier | Likelihood, Field(discriminator="kind")]


class Top(Node):
    """The pairs on which reward and estimator agree, and of these the least uncertain."""

    rule: Literal["agree+topk"] = "agree+topk"
    """Which rule."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the agreed pairs that is kept."""


class Mu(Node):
    """Pairs drawn without replacement, weighted by (1 - B)^mu (the paper's reliable sampling)."""

    rule: Literal["mu"] = "mu"
    """Which rule."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the pairs that is drawn."""
    mu: float = Field(default=10.0, ge=0)
    """0 draws evenly, a large one takes the least uncertain; the paper's value is not known."""
    agreement: Literal["required", "ignored"] = "required"
    """Whether reward and estimator must agree; the paper does not ask for it, its program does."""


class Legacy(Node):
    """The published program's mixture: easy, hard and far pairs."""

    rule: Literal["legacy"] = "legacy"
    """Which rule."""
    easy: float = Field(default=0.5, ge=0, le=1)
    """Share of the agreed pairs drawn with a weight of 1 - B."""
    hard: float = Field(default=0.5, ge=0, le=1)
    """Share of the agreed pairs drawn, independently, with a weight of B."""
    hard_kept: float = Field(default=0.2, ge=0, le=1)
    """Share of the hard ones that is kept."""
    far: float = Field(default=0.3, ge=0, le=1)
    """Share of the prompts whose pair of the largest margin is kept, unseen by the estimator."""


AnyRule: TypeAlias = Annotated[Top | Mu | Legacy, Field(discriminator="rule")]


class Smoothing(Node):
    """How uncertain a kept pair's label is taken to be: `preference` becomes 1 - alpha."""

    mode: Literal["information", "probability", "odds", "none", "printed"] = "information"
    """alpha = 0.5 B / log 2 (information), min(0.5, 1 - P(chosen better)) (probability),
    1 / (1 + P_j / min P) (odds), 0 (none), or 1 / (1 + P_j) as printed in the paper, which is at
    least 1/2 and reverses the preferences."""
    mu: float | None = Field(default=None, ge=0)
    """Exponent in P_j for odds and printed; null means 1."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.mu is not None and self.mode not in ("odds", "printed"):
            yield "mu", f"`mode: {self.mode}` does not read it; take it out"


class UncertaintySettings(PipelineSettings):
    """Candidate pairs by reward, filtered by an estimator with dropout; UPO (2409.11212)."""

    chunk: int = Field(default=32, ge=1)
    """Prompts worked on together, and journaled together."""
    rewards: Annotated[Rewards, Open()] | None = None
    """What scores the responses; null in a loop whose judge stage has scored them."""
    reference_answer: Literal["leave_out", "add"] = "leave_out"
    """Whether a prompt's known answer stands among its responses; the published program adds it."""
    candidates: Literal["halves", "extremes"] = "halves"
    """Which two responses, sorted by reward, make a pair: one of the upper and one of the lower
    half (paper), or any two of the best two and the worst two (its program)."""
    estimated: float = Field(default=1.0, gt=0, le=1)
    """Share of the candidates that the estimator reads, drawn at random; the program has 0.25."""
    passes: int = Field(default=10, ge=2)
    """T, networks with units left out."""
    order: Literal["both", "chosen_first"] = "both"
    """Whether each pair is read in both orders and averaged, so that a habit of position cancels;
    the program reads one."""
    agreement: Literal["majority", "first_pass"] = "majority"
    """Whether reward and estimator agree: most of the passes say so (ties do not), or one whole
    network, asked first, so that the passes are spent on agreed pairs only."""
    estimator: AnyEstimator = Classifier()
    """What says which response is better, and how surely."""
    select: AnyRule = Top()
    """Which of the estimated pairs are kept."""
    smoothing: Smoothing = Smoothing()
    """How soft the label of a kept pair is."""
    replay: float = Field(default=0.0, ge=0, le=1)
    """Share of the labelled pairs that joins the kept ones; the program has 0.4."""
    dedupe: Literal["none", "prompt"] = "none"
    """`prompt` keeps one pair of each prompt, at random; the program does."""

    def hashed(self) -> dict[str, Any]:
        """All keys of this class."""
        found = self.fields_of(UncertaintySettings) | {"run": "uncertainty"}
        return found | ({} if self.rewards is None else {"rewards": self.rewards.hashed()})

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.select.rule == "legacy" and self.agreement == "first_pass":
            yield (
                "agreement",
                "legacy keeps far pairs whatever the estimator says, and first_pass drops them "
                "early; write `majority`",
            )
        if (
            self.select.rule == "mu"
            and self.select.agreement == "ignored"
            and self.agreement == "first_pass"
        ):
            yield "agreement", "`select.agreement: ignored` does not read it; write `majority`"
