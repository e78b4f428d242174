"""APO: iterated preference optimisation with Nesterov-like momentum of the reference.

Accelerated Preference Optimization, He et al. 2024, arXiv:2410.06293 (the update is as we know it
from the abstract and a review; no equation number is verified). Not Anchored PO, which TRL calls
`apo_zero` and `apo_down`. In round 1 `earlier` is `previous`, and the momentum does nothing.

Differs from the paper: the extrapolated policy is never built. Its normaliser cancels between the
sides, so its log-probs follow from those of two rounds; the paper extrapolates parameters in
practice (unverified), which is another policy. For the same reason the inner SPPO is pairwise: its
loss per completion would keep the normaliser.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios, present, weighted_sum
from align.types import ObjectiveOutput, PairInputs


class APO(Objective, frozen=True):
    r"""DPO or pairwise SPPO against the extrapolated policy; h = g_chosen - g_rejected.

    g = log pi - [(1 + momentum) log pi_previous - momentum log pi_earlier]
    dpo:   L = -p log sigmoid(beta h) - (1-p) log sigmoid(-beta h)
    sppo:  L = (h - (P_chosen - P_rejected) / beta)^2

    Log-probs are summed over completion tokens; p = P(chosen beats rejected), 1 unless `preference`
    is given; P_y = `score`, the win rate of y. Reward: beta g.
    """

    name: Literal["apo"] = "apo"
    scores_are_win_rates = True

    beta: float = Field(default=0.1, gt=0, description="Reward (sppo: win rate) per nat.")
    momentum: float = Field(
        default=0.3, ge=0, lt=1, description="Extrapolation from earlier over previous; 0 is none."
    )
    inner: Literal["dpo", "sppo"] = Field(
        default="dpo", description="The loss of a round: on preferences, or on win rates."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on inner
        """`previous` and `earlier`; `score` where the inner loss is sppo."""
        return frozenset({"previous", "earlier"} | ({"score"} if self.inner == "sppo" else set()))

    @property
    def accepts(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on inner
        """`preference` where the inner loss is dpo."""
        return frozenset({"preference"} if self.inner == "dpo" else set())

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        d = logratios(inputs.policy, inputs.previous)
        step = logratios(present(inputs.previous), inputs.earlier)
        g = weighted_sum(1.0, d, -self.momentum, step)  # of log-ratios: exactly 0 at the start
        h = g.chosen - g.rejected
        if self.inner == "dpo":
            p = 1.0 if inputs.preference is None else inputs.preference
            loss = p * softplus(-self.beta * h) + (1 - p) * softplus(self.beta * h)
        else:
            win_rate = present(inputs.score)
            loss = (h - (win_rate.chosen - win_rate.rejected) / self.beta) ** 2
        reward = detached(self.beta * g.chosen, self.beta * g.rejected)
        return ObjectiveOutput(loss=loss, reward=reward, metrics={})
