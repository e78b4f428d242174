"""TGDPO: DPO whose tokens are weighed by what a guide model thinks of them.

Token-level reward Guidance, Zhu et al. 2025, arXiv:2506.14574, as in the authors' code; the guide
is a finished preference model, for example DPO's. The theory asks for positive weights; the code
neither clamps nor checks them, so a weight that is not positive turns its token's pull around.

Differs from the code: such weights are counted (metrics, per pair) and told once in the log. beta
is 0.1 in the authors' sample configuration and reported as 0.01 for the paper's main runs.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from align.objectives.base import Objective, detached, logratios, present
from align.objectives.refusals import refuse
from align.types import Logps, ObjectiveOutput, Pair, PairInputs, at_least_float32

logger = logging.getLogger(__name__)


class TGDPO(Objective, frozen=True):
    r"""L = -log sigmoid(phi_chosen - phi_rejected).

    phi = sum_t f_t beta (log pi(y_t) - log pi_ref(y_t))
    f_t = 1 + alpha r_t on chosen, 1 - alpha r_t on rejected
    r_t = beta (log pi_guide(y_t) - log pi_ref(y_t))

    beta in r_t is the one of this training, whatever the guide was trained with. Reward: phi.
    """

    name: Literal["tgdpo"] = "tgdpo"
    needs = frozenset({"reference", "guide"})

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    alpha: float = Field(
        default=0.5, ge=0, description="How far the guide's token rewards move weights; 0 is DPO."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs, and the number of tokens whose weight is not positive."""
        inputs = self.checked(inputs)
        reference, guide = present(inputs.reference), present(inputs.guide)
        step = self.alpha * self.beta
        weight = Pair(
            1 + step * _token_logratio(guide.chosen, reference.chosen),
            1 - step * _token_logratio(guide.rejected, reference.rejected),
        )
        rho = logratios(inputs.policy, reference, weight)
        phi = Pair(self.beta * rho.chosen, self.beta * rho.rejected)
        loss = softplus(phi.rejected - phi.chosen)
        metrics = {
            "nonpositive_weights/chosen": _not_positive(weight.chosen, guide.chosen),
            "nonpositive_weights/rejected": _not_positive(weight.rejected, guide.rejected),
        }
        not_positive = sum(metrics.values(), torch.zeros_like(loss)) > 0
        refuse(not_positive, lambda _: _warn_once(self.alpha, self.beta))
        return ObjectiveOutput(loss, detached(phi.chosen, phi.rejected), metrics)


def _token_logratio(guide: Logps, reference: Logps) -> Tensor:
    """[B, T] nats; what stands where the mask is False is not to be read."""
    return at_least_float32(guide.token) - at_least_float32(reference.token)


def _not_positive(weight: Tensor, logps: Logps) -> Tensor:
    """[B] number of completion tokens."""
    return ((weight <= 0) & logps.mask).sum(dim=1).to(weight.dtype)


@cache
def _warn_once(alpha: float, beta: float) -> None:
    logger.warning(
        "tgdpo: some token weights are not positive, so these tokens are pulled the wrong way: the "
        "guide is far from the reference for alpha %g and beta %g. Lower alpha, and watch the "
        "metrics nonpositive_weights/chosen and nonpositive_weights/rejected.",
        alpha,
        beta,
    )
