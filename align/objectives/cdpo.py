"""cDPO: DPO with smoothed labels, which stops at a finite margin.

Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO". TRL 1.16 has no such
loss: its `sigmoid` ignores `label_smoothing`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios
from align.types import ObjectiveOutput, PairInputs


class CDPO(Objective, frozen=True):
    r"""L = -(1-eps) log sigmoid(m) - eps log sigmoid(-m),   m = beta (rho_chosen - rho_rejected).

    With rho as in DPO and eps = `label_smoothing`; least at m = log((1-eps)/eps). Reward: beta rho.
    Noise that is known per row is `dpo` with preference 1 - eps.
    """

    name: Literal["cdpo"] = "cdpo"
    needs = frozenset({"reference"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=0.5, description="Assumed fraction of wrong labels; 0 is DPO."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference)
        margin = self.beta * (rho.chosen - rho.rejected)
        eps = self.label_smoothing
        return ObjectiveOutput(
            loss=(1 - eps) * softplus(-margin) + eps * softplus(margin),
            reward=detached(self.beta * rho.chosen, self.beta * rho.rejected),
            metrics={},
        )
