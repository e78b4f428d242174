"""TRPA: every pair of a prompt's completions of different levels, within reach of the sampler.

Trust Region Preference Approximation, 2025, arXiv:2504.04524, in the form of the authors' code.

Levels come from `score`: a higher score is a better level, equal scores are one level, and level 1,
whose pairs weigh `anisotropy`, is a score of at least `top_score`, so that a group of wrong answers
has none. Ranks from 1 (best) downwards are `score: -rank` with `top_score: -1`.

Differs from the code: the mean over pairs, and that of the trust term over tokens, are those of a
prompt and not of a micro-batch, whose borders mean nothing; where no pair exists the loss is 0,
while the code falls back to single answers.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import present
from align.objectives.groups.base import GroupObjective, group_sum, ranked_pairs
from align.objectives.groups.tokens import k3, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput

LARGEST_TRUST_TERM = 10.0  # nats of a token; the code's clamp, beyond which there is no gradient


class TRPA(GroupObjective, frozen=True):
    r"""L = mean_(i over j) -log sigmoid(h_ij) + trust_weight mean_t min(k3_t, 10).

    pair:      h = a_i beta (delta_i - delta_j)
    response:  h = beta (a_i delta_i - a_j delta_j)
    delta(y) = (log pi(y|x) - log pi_ref(y|x)) / length(y),   a = `anisotropy` at level 1, else 1

    Per prompt, over its pairs of different levels and all of its tokens; it stands at each of its
    completions. k3 = exp(-d) + d - 1 of a token's log-ratio d to `previous`. Reward: beta delta.
    """

    name: Literal["trpa"] = "trpa"

    beta: float = Field(
        default=0.1, gt=0, description="Reward per nat of log-ratio averaged over tokens."
    )
    anisotropy: float = Field(default=2.5, ge=1, description="What beta is multiplied by, level 1.")
    top_score: float = Field(default=1.0, description="Least score of level 1: a right answer's.")
    trust_weight: float = Field(
        default=0.001, ge=0, description="Loss per nat of k3 from previous; 0 needs no previous."
    )
    form: Literal["pair", "response"] = Field(
        default="pair",
        description="Anisotropy of the pair by its winner (code), or of each side (paper).",
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on trust_weight
        """`reference` and `score`; `previous` where trust_weight > 0."""
        return frozenset(
            {"reference", "score"} | ({"previous"} if self.trust_weight > 0 else set())
        )

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions; of their prompts the trust term, and what compares."""
        inputs = self.checked(inputs)
        group, score, mask = inputs.group, present(inputs.score), inputs.policy.mask
        lengths = inputs.policy.lengths().to(score.dtype)
        delta = token_logratio(inputs.policy, present(inputs.reference)).sum(dim=1) / lengths
        factor = torch.ones_like(delta).masked_fill(score >= self.top_score, self.anisotropy)
        if self.form == "pair":
            h = factor[:, None] * (delta[:, None] - delta[None, :])
        else:
            h = (factor * delta)[:, None] - (factor * delta)[None, :]
        pairs = ranked_pairs(score, group)
        losses = softplus(-self.beta * h).masked_fill(~pairs, 0.0).sum(dim=1)
        count = group_sum(pairs.sum(dim=1).to(delta.dtype), group)
        loss = group_sum(losses, group) / count.clamp(min=1)
        metrics = {"compares": (count > 0)[group].to(delta.dtype)}
        if self.trust_weight > 0:
            of_tokens = k3(inputs.policy, present(inputs.previous)).clamp(max=LARGEST_TRUST_TERM)
            trust = group_sum(token_sum(of_tokens, mask), group) / group_sum(lengths, group).clamp(
                min=1
            )
            loss = loss + self.trust_weight * trust
            metrics["trust"] = trust.detach()[group]
        return GroupOutput(loss=loss[group], reward=self.beta * delta.detach(), metrics=metrics)
