"""DPO: logistic regression on the gap between two implicit rewards.

Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Soft labels (`preference`) are cDPO with one noise
rate per row; token weights are those of OPA-DPO, arXiv:2501.09695.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios
from align.types import ObjectiveOutput, PairInputs


class DPO(Objective, frozen=True):
    r"""L = -p log sigmoid(m) - (1-p) log sigmoid(-m),   m = beta (rho_chosen - rho_rejected).

    With rho = log pi(y|x) - log pi_ref(y|x), summed over completion tokens (weighted where
    `token_weight` is given), and p = P(chosen beats rejected), 1 unless `preference` is given.
    Reward: beta rho.
    """

    name: Literal["dpo"] = "dpo"
    needs = frozenset({"reference"})
    accepts = frozenset({"preference", "token_weight"})

    beta: float = Field(
        default=0.1, gt=0, description="Reward per nat of log-ratio; larger stays nearer pi_ref."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        rho = logratios(inputs.policy, inputs.reference, inputs.token_weight)
        margin = self.beta * (rho.chosen - rho.rejected)
        p = 1.0 if inputs.preference is None else inputs.preference
        return ObjectiveOutput(
            loss=p * softplus(-margin) + (1 - p) * softplus(margin),
            reward=detached(self.beta * rho.chosen, self.beta * rho.rejected),
            metrics={},
        )
