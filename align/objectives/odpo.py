"""ODPO: DPO whose margin must exceed an offset that grows with the difference of scores.

DPO with an Offset, Amini et al. 2024, arXiv:2402.10571; loss and the logarithm as in the authors'
code (alpha 1 there, and 0 is DPO).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from align.errors import DataError
from align.objectives.base import Objective, detached, logratios, present
from align.objectives.refusals import refuse
from align.types import ObjectiveOutput, PairInputs


class ODPO(Objective, frozen=True):
    r"""L = -log sigmoid(beta (rho_chosen - rho_rejected) - alpha f(R_chosen - R_rejected)).

    With rho as in DPO, R = `score` and f the logarithm or the identity. The logarithm is negative
    for differences below 1 and wants every chosen score to be the higher one. Reward: beta rho.
    """

    name: Literal["odpo"] = "odpo"
    needs = frozenset({"reference", "score"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    alpha: float = Field(default=1.0, ge=0, description="Weight of the offset; 0 is DPO.")
    scale: Literal["log", "identity"] = Field(
        default="log", description="f: the offset is the log of the score difference, or itself."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs.

        Raises:
            DataError: also where `scale` is log and a chosen score is not above the rejected one.
        """
        inputs = self.checked(inputs)
        rho, score = logratios(inputs.policy, inputs.reference), present(inputs.score)
        margin = self.beta * (rho.chosen - rho.rejected)
        offset = self.alpha * self._of(score.chosen - score.rejected)
        return ObjectiveOutput(
            loss=softplus(offset - margin),
            reward=detached(self.beta * rho.chosen, self.beta * rho.rejected),
            metrics={},
        )

    def _of(self, difference: Tensor) -> Tensor:
        if self.scale == "identity":
            return difference
        refuse(
            difference <= 0,
            lambda row: DataError(
                f"Pair {row} of this batch has chosen_score - rejected_score = "
                f"{float(difference[row]):g}, and `odpo` takes its logarithm: leave out rows whose "
                "chosen score is not the higher one, or write `scale: identity`."
            ),
        )
        return difference.log()
