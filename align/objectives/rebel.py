"""REBEL: the gap of log-ratios to the sampling policy is regressed on the gap of rewards.

Gao et al. 2024, arXiv:2404.16767; REFUEL (Gao et al. 2024, arXiv:2410.04612) is this on rows whose
prompt is a shared dialogue prefix and whose scores are returns.

Differs from the paper: as in the authors' code, eta multiplies the score gap; the paper divides the
log-ratios by eta instead (as far as we know; its text is not verified), which is this loss /
eta^2: same minimum, other learning rate. The code of some settings also takes a KL term off the
rewards at sampling time; here the scores are the data's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.objectives.base import Objective, detached, logratios, present
from align.types import ObjectiveOutput, PairInputs


class REBEL(Objective, frozen=True):
    r"""L = (d_chosen - d_rejected - eta (R_chosen - R_rejected))^2.

    With d = log pi(y|x) - log pi_previous(y|x), summed over completion tokens, and R = `score`, a
    reward in any unit; which side is which does not matter. Reward: d / eta, an estimate of R up to
    a constant of the prompt.
    """

    name: Literal["rebel"] = "rebel"
    needs = frozenset({"previous", "score"})

    eta: float = Field(
        default=1.0, gt=0, description="Nats of log-ratio per unit of score: the step size."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        d, score = logratios(inputs.policy, inputs.previous), present(inputs.score)
        target = self.eta * (score.chosen - score.rejected)
        return ObjectiveOutput(
            loss=(d.chosen - d.rejected - target) ** 2,
            reward=detached(d.chosen / self.eta, d.rejected / self.eta),
            metrics={},
        )
