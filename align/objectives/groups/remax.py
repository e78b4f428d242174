"""ReMax: policy gradient whose baseline is the reward of the prompt's greedy answer.

Li et al. 2023, arXiv:2310.10505, as in the authors' code. The greedy answer comes in through
`advantage`, R(y) - R(greedy answer of `previous`): whoever judges the completions judges it too.

On-policy only: there is no ratio, so a round's completions make one optimizer step. Off `previous`
the gradient is no policy gradient any more.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import present
from align.objectives.groups.token_mean import TokenMean
from align.objectives.groups.tokens import token_logps, token_logratio, token_sum
from align.types import GroupInputs, GroupOutput


class ReMax(TokenMean, frozen=True):
    r"""L = -sum_t G_t log pi(y_t) / (mean tokens of the step's completions).

    G_t = gamma^(T - t + 1) clip(A, -clip, clip) - kl_beta (log pi_previous(y_t) - log pi_ref(y_t))

    With A = `advantage` and t from 1 to the T tokens of y; the KL term is each token's own, not
    summed over what follows. The mean over the step's completions is then the mean over its tokens.
    Reward: log pi(y|x).
    """

    name: Literal["remax"] = "remax"

    kl_beta: float = Field(
        default=0.05,
        ge=0,
        description="Advantage per nat of previous over pi_ref; 0 needs neither role.",
    )
    clip: float = Field(default=5.0, gt=0, description="Largest advantage that counts.")
    gamma: float = Field(
        default=1.0, gt=0, le=1, description="Discount of the advantage per token to the end."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on kl_beta
        """`advantage`; `previous` and `reference` where kl_beta > 0."""
        return frozenset({"advantage"} | ({"previous", "reference"} if self.kl_beta > 0 else set()))

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, and which advantages are cut."""
        inputs = self.checked(inputs)
        mask, advantage = inputs.policy.mask, present(inputs.advantage)
        cut = advantage.clamp(-self.clip, self.clip)
        to_end = mask.flip(1).cumsum(dim=1).flip(1).to(cut.dtype)  # T - t + 1
        returns = self.gamma**to_end * cut[:, None]
        if self.kl_beta > 0:
            kl = token_logratio(present(inputs.previous), present(inputs.reference))
            returns = returns - self.kl_beta * kl
        gain = token_sum(returns * token_logps(inputs.policy), mask)
        return GroupOutput(
            loss=-gain / self.mean_tokens(inputs),
            reward=inputs.policy.total().detach(),
            metrics={"clipped": (cut != advantage).to(advantage.dtype)},
        )
