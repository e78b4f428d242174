"""RPO: DPO plus a likelihood term on the chosen completion, which bounds over-optimisation.

Regularized Preference Optimization, Liu et al. 2024, arXiv:2405.16436, eq. 4.8 ("cumulative") and
the authors' length-averaged variant ("average", which has no factor beta). Two other papers
abbreviate to RPO: Reward-aware PO (2502.00203) and Iterative Reasoning PO (2404.19733).

Differs from the paper: the baseline completions are the chosen ones, as in the authors' runs.
TRL's recipe `["sigmoid", "sft"]` is a third loss (one mean over all chosen tokens of the batch, no
beta), not offered here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective
from align.objectives.dpo import DPO
from align.types import ObjectiveOutput, PairInputs


class RPO(Objective, frozen=True):
    r"""DPO plus the negative log-likelihood of chosen, in one of two scales.

    cumulative:  L = L_DPO - eta beta log pi(y_chosen|x)
    average:     L = L_DPO - eta      log pi(y_chosen|x) / |y_chosen|

    `preference` softens L_DPO; the likelihood term stays on chosen. Reward: beta rho, as in DPO.
    """

    name: Literal["rpo"] = "rpo"
    needs = frozenset({"reference"})
    accepts = frozenset({"preference"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    eta: float = Field(default=0.005, ge=0, description="Weight of the likelihood term; 0 is DPO.")
    form: Literal["cumulative", "average"] = Field(
        default="cumulative", description="Likelihood term: beta times the sum, or the token mean."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        dpo = DPO(beta=self.beta)(inputs)
        chosen = inputs.policy.chosen
        nll = -self.beta * chosen.total() if self.form == "cumulative" else -chosen.average()
        return ObjectiveOutput(
            loss=dpo.loss + self.eta * nll,
            reward=dpo.reward,
            metrics={"nll/chosen": -chosen.average().detach()},
        )
