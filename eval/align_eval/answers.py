"""How far a policy has moved where it stands: KL to the start, and length, of what it samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.errors import DataError, RecipeError
from align.estimates import Estimate, kl_divergence, mean, proportion
from align.evaluation import Measurement, Subject
from align.forest import TokenRow, forest_logps
from align.policies.base import Sampling
from align.policies.loaded import evaluating
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Drawn, Stem
from align.tokens.tokenized_pair import TokenizedPair
from align.types import Logps

# Tokens of one forward pass in which answers are scored, where the recipe gives no number.
TOKENS = 4096


@dataclass(frozen=True)
class Sampled:
    """One answer of the policy to each prompt.

    Attributes:
        policy: log-probs of the answers' tokens, the end token included, under the policy.
        start: the same under the policy that the run began with.
        lengths: tokens of each answer without its end token, [N].
        finished: whether the policy ended it before `max_new_tokens`, [N].
    """

    policy: Logps
    start: Logps
    lengths: Tensor
    finished: Tensor

    def estimates(self) -> dict[str, Estimate]:
        """What the suite tells of them."""
        return {
            "kl_to_start": kl_divergence(self.policy, self.start),
            "length": mean(self.lengths, what="length"),
            "finished": proportion(int(self.finished.sum()), len(self.finished)),
        }


class Answers(Measurement):
    """KL to the start policy, length and share of finished ones, of answers that are sampled."""

    run: Literal["answers"] = "answers"
    """Which evaluation."""
    n: int = Field(default=64, ge=1)
    """Prompts at most, the first ones of the held-out pairs; one answer to each."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Most tokens of an answer, its end token included; one that is cut off counts as it stands."""
    needs_pairs: ClassVar[bool] = True
    reads_start: ClassVar[bool] = True

    def estimates(self, subject: Subject) -> Mapping[str, Estimate]:
        """The three numbers.

        Returns:
            kl_to_start: nats per answer, `align.estimates.kl_divergence`: exactly 0 for the start.
            length: tokens, without the end token.
            finished: share.

        Raises:
            RecipeError: there are no held-out pairs, they show pictures, or the model is behind a
                server.
            DataError: a prompt leaves no room for an answer.
        """
        return self.sampled(subject).estimates()

    def sampled(self, subject: Subject) -> Sampled:
        """The answers, prompt by prompt, for comparisons in pairs.

        They are drawn at temperature 1, since that is what the estimate of the divergence is of.
        Prompt and seed decide the random numbers, so two policies get the same ones.

        Raises:
            RecipeError: as for `estimates`.
            DataError: likewise.
        """
        found = subject.in_memory(self.run)
        prompts = self._prompts(subject.held_out)
        drawn = self._drawn(InProcessWriter(found.model, found.tokenizer), prompts, subject.seed)
        rows = [TokenRow(ids, one.ids) for ids, one in zip(prompts, drawn, strict=True)]
        # In the same layout, so that equal weights give equal numbers to the last bit.
        policy = _scored(found.model, rows, subject)
        start = policy
        if not found.start.is_model(found.model):
            start = _scored(found.reference, rows, subject)
        finished = torch.tensor([one.finish == "end" for one in drawn])
        return Sampled(policy, start, policy.lengths() - finished.long(), finished)

    def _prompts(self, held_out: Sequence[TokenizedPair]) -> list[tuple[int, ...]]:
        if not held_out:
            raise RecipeError(
                "evaluate.suite asks for 'answers' and there are no held-out pairs, whose prompts "
                "it asks: keep some rows out of training, or take 'answers' out of the suite."
            )
        if any(pair.pair.images for pair in held_out):
            raise RecipeError(
                "evaluate.suite: answers asks prompts of text alone, and these rows show pictures; "
                "take it out."
            )
        return list(dict.fromkeys(tuple(pair.prompt_ids) for pair in held_out))[: self.n]

    def _drawn(
        self, writer: InProcessWriter, prompts: Sequence[tuple[int, ...]], seed: int
    ) -> list[Drawn]:
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=1.0)
        stems = [Stem(ids, (), " ".join(map(str, ids))) for ids in prompts]
        longest = min(stems, key=writer.room)
        if writer.room(longest) < self.max_new_tokens:
            raise DataError(
                f"evaluate.suite: answers asks for {self.max_new_tokens} tokens, and a held-out "
                f"prompt of {len(longest.prompt_ids)} tokens leaves room for "
                f"{max(writer.room(longest), 0)} in the model's context. Lower max_new_tokens, or "
                "data.max_length."
            )
        answers = writer.draw([Draw(stem, 1, sampling) for stem in stems], seed)
        # A model in memory always answers.
        return [one for answer in answers if isinstance(answer, list) for one in answer]


def _scored(model: Any, rows: Sequence[TokenRow], subject: Subject) -> Logps:
    budget = subject.token_budget if isinstance(subject.token_budget, int) else TOKENS
    with evaluating(model):
        found = forest_logps(model, rows, token_budget=budget)
    return Logps(found.token.cpu(), found.mask.cpu())
