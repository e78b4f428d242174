"""SPPO: each side's log-ratio to the policy that sampled it is regressed on its win rate.

Self-Play Preference Optimization, Wu et al. 2024, arXiv:2405.00675; beta is the paper's 1/eta. The
factor 1/2 is the authors' code's; TRL's `sppo_hard` (scores 1 and 0) has none and is twice this.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective, detached, logratios, present
from align.types import ObjectiveOutput, PairInputs


class SPPO(Objective, frozen=True):
    r"""L = 1/2 sum over sides y of (d_y - (P_y - 1/2) / beta)^2.

    With d = log pi(y|x) - log pi_previous(y|x), summed over completion tokens, and P_y = `score`,
    the probability that y beats a sample of `previous`. Reward: beta d, which estimates P - 1/2.
    """

    name: Literal["sppo"] = "sppo"
    needs = frozenset({"previous", "score"})
    scores_are_win_rates = True

    beta: float = Field(
        default=0.001, gt=0, description="Win rate per nat: a sure win aims at 1/(2 beta) nats."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        d, win_rate = logratios(inputs.policy, inputs.previous), present(inputs.score)
        chosen = d.chosen - (win_rate.chosen - 0.5) / self.beta
        rejected = d.rejected - (win_rate.rejected - 0.5) / self.beta
        return ObjectiveOutput(
            loss=0.5 * (chosen**2 + rejected**2),
            reward=detached(self.beta * d.chosen, self.beta * d.rejected),
            metrics={},
        )
