"""What the pipeline of expert correction is told, and the alignment that follows it.

Yang et al. 2025, OPA-DPO (arXiv 2501.09695). Marked "code": a value of the authors' program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from pydantic import Field

from align.node import Conflict, Node
from align_data.settings import PipelineSettings

PairKind: TypeAlias = Literal["gt_vs_gen", "rev_vs_gen", "gt_img", "rev_img"]
IMAGE_KINDS: tuple[PairKind, ...] = ("gt_img", "rev_img")


class Responses(Node):
    """How the policy answers, where its responses are not given."""

    samples: int = Field(default=1, ge=1)
    """Responses per prompt."""
    max_new_tokens: int = Field(default=896, ge=1)
    """Tokens of a response at most (code)."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature (code)."""
    top_k: int = Field(default=30, ge=0)
    """Sample from so many likeliest tokens; 0 takes all (code)."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together (code)."""


class Expert(Node):
    """How the expert is asked."""

    max_new_tokens: int = Field(default=3000, ge=1)
    """Tokens of a report at most (code)."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature (code)."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together (code)."""
    retries: int = Field(default=3, ge=0)
    """Times that a report which cannot be used is asked for again, with what is wrong with it."""
    max_restyled: float = Field(default=0.6, ge=0, le=1)
    """Share of sentences that the expert may call right and rewrite all the same."""


class Severity(Node):
    """Weight of the tokens of a sentence by its score, in both responses (code)."""

    right: float = Field(default=1.0, ge=0)
    """Score 4."""
    minor: float = Field(default=1.5, ge=0)
    """Score 3: a small fix."""
    substantial: float = Field(default=2.0, ge=0)
    """Score 2: a substantial error."""
    wrong: float = Field(default=2.5, ge=0)
    """Score 1: irrelevant, or wrong altogether."""


class ExpertCorrectionSettings(PipelineSettings):
    """An expert corrects the policy's own responses, sentence by sentence."""

    pairs: tuple[PairKind, ...] = ("gt_vs_gen", "rev_vs_gen")
    """Ground truth over response; revision over response with token weights; gt_img and rev_img:
    each of the two under its picture over itself under a degraded one, where prompts show any."""
    responses: Responses = Responses()
    """How the policy answers, where its responses are not given."""
    expert: Expert = Expert()
    """How the expert is asked."""
    severity: Severity = Severity()
    """Weight of a sentence's tokens by its score."""
    image_error_weight: float = Field(default=3.0, ge=0)
    """Weight of a sentence whose error is one of image recognition, in rev_img (code)."""
    degraded_share: float = Field(default=0.3, gt=0, le=1)
    """Share of the pixels of a degraded picture that lose their colour (code)."""
    add_missing: bool = False
    """Put a sentence that the expert misses behind the revision."""
    max_word_repeats: int = Field(default=30, ge=1)
    """A text whose last word occurs more often is dropped (code)."""
    chunk: int = Field(default=64, ge=1)
    """Prompts that are worked on together, and resumed together."""

    def hashed(self) -> dict[str, Any]:
        """All keys of this class."""
        return self.fields_of(ExpertCorrectionSettings) | {"run": "expert_correction"}

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if not self.pairs:
            yield "pairs", "is empty; write one or more of gt_vs_gen, rev_vs_gen, gt_img, rev_img"
        if len(set(self.pairs)) < len(self.pairs):
            yield "pairs", "names a kind twice; take one out"


class OnPolicyAlignmentSettings(Node):
    """The policy learns the ground truths and revisions first, so that they become its own.

    Fine-tuning with LoRA; the pairs are then trained on with the result as policy and reference.
    """

    rank: int = Field(default=256, ge=1)
    """Of the LoRA adapter (code)."""
    alpha: int = Field(default=512, ge=1)
    """Scale of the adapter, in units of 1/rank (code)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter (code)."""
    target_modules: tuple[str, ...] = ()
    """Modules that are adapted; empty takes every linear layer (code)."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak; a cosine follows the warm-up (code)."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises (code)."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the responses (code)."""
    batch: int = Field(default=128, ge=1)
    """Responses of one optimizer step (code)."""
    batch_rows: int = Field(default=8, ge=1)
    """Responses of one forward pass; the gradient is the same."""
    max_length: int = Field(default=2048, ge=16)
    """Longer rows, prompt included, are dropped and counted (code)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    save: Literal["merged", "adapter"] = "merged"
    """merged: a whole model, which any later stage can start from; adapter: the adapter alone, as
    the authors advise for use without further training."""
