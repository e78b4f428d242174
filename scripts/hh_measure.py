"""What hh_table.py measures of a trained adapter: pair by pair, answer by answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.estimates import Estimate, mean, proportion
from align.policies.loading import load_tokenizer
from align.policies.start import Start, start_identity
from align.recipe import Recipe
from align.stages.evaluate import subject_of
from align.stages.pairs import read_recipe_pairs
from align.stages.policies import load_adapted, load_whole, policy_folder, start_beside
from align_eval.answers import Answers
from align_eval.metrics import TIE_NATS
from align_eval.preference import Preference


@dataclass(frozen=True)
class Measured:
    """One policy against the start.

    Attributes:
        chosen: log-ratio of the chosen completion of each held-out pair, nats.
        rejected: of the rejected one.
        kl: log-ratio of one sampled answer to each of some held-out prompts, nats.
        length: its tokens, without the end token.
        finished: whether it ended by itself.
    """

    chosen: Sequence[float]
    rejected: Sequence[float]
    kl: Sequence[float]
    length: Sequence[float]
    finished: Sequence[bool]

    @property
    def margin(self) -> torch.Tensor:
        """Of each pair, nats, without beta."""
        return torch.tensor(self.chosen).double() - torch.tensor(self.rejected).double()

    @property
    def hits(self) -> torch.Tensor:
        """1 where the chosen completion gained more, 0 where the other did, 1/2 where neither."""
        tie = self.margin.abs() < TIE_NATS
        return torch.where(tie, 0.5, (self.margin > 0).double())

    def estimates(self) -> dict[str, Estimate]:
        """The columns, with 95 % intervals."""
        decided = self.hits != 0.5
        return {
            "accuracy": proportion(int(self.hits[decided].sum()), int(decided.sum())),
            "margin": mean(self.margin, what="margin"),
            "chosen": mean(self.chosen, what="chosen"),
            "kl": mean(self.kl, what="kl"),
            "length": mean(self.length, what="length"),
            "finished": proportion(sum(self.finished), len(self.finished)),
        }

    def against(self, other: Measured) -> dict[str, Estimate]:
        """Differences on the same held-out pairs, pair by pair, with paired intervals."""
        return {
            "accuracy": mean(self.hits - other.hits, what="difference of accuracies"),
            "margin": mean(self.margin - other.margin, what="difference of margins"),
        }


def measured(recipe: Recipe, adapter: Path | None, answers: Answers) -> dict[str, Any]:
    """The fields of `Measured`, as JSON; without an adapter the start itself is measured.

    Args:
        recipe: its `data.pairs` are the held-out ones.
        adapter: folder of a trained adapter.
        answers: how answers are sampled.
    """
    folder = policy_folder(recipe.model)
    tokenizer: Any = load_tokenizer(recipe.model, folder)
    held_out = read_recipe_pairs(recipe, folder, tokenizer).train
    identity = start_identity(recipe.model, folder, tokenizer)
    if adapter is None:
        policy: Any = load_whole(recipe.model, folder)
        start = Start.in_memory(policy, identity)
    else:
        policy = load_adapted(recipe.model, adapter, folder, trainable=False)
        start = start_beside(recipe, folder, identity, policy)
    subject = subject_of(recipe, policy, start, tokenizer, held_out, "")
    ours, theirs = Preference().scored(subject)
    sampled = answers.sampled(subject)
    gap = sampled.policy.total() - sampled.start.total()
    return {
        "chosen": (ours.chosen.total() - theirs.chosen.total()).tolist(),
        "rejected": (ours.rejected.total() - theirs.rejected.total()).tolist(),
        "kl": gap.tolist(),
        "length": sampled.lengths.tolist(),
        "finished": sampled.finished.tolist(),
    }
