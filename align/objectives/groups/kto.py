"""KTO: each completion is judged by itself, against what the policy gains on average.

Kahneman-Tversky Optimization, Ethayarajh et al. 2024, arXiv:2402.01306, equation 7 (as TRL 1.16
quotes it; not verified against the paper). The KL term is estimated from mismatched completions:
each prompt with the completion of the row before it in its batch, in the data set's order.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.errors import DataError
from align.objectives.base import present
from align.objectives.coupled import Carried, CoupledGroups
from align.objectives.groups.base import group_logratio
from align.types import GroupInputs, GroupOutput


class KTO(CoupledGroups, frozen=True):
    r"""L = lambda_D sigmoid(-beta (rho - z)) if desirable, else lambda_U sigmoid(-beta (z - rho)).

    z = max(0, mean over the step of the mismatched completions' log-ratios), without gradient; an
    evaluation takes the mean over all of its rows. rho as in DPO. Reward: beta rho.
    """

    name: Literal["kto"] = "kto"
    needs = frozenset({"reference", "label"})
    accepts = frozenset({"mismatched"})
    measures = ("mismatched log-ratio",)
    gives = ("kl",)

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    desirable_weight: float = Field(
        default=1.0, gt=0, description="Weight of desirable completions, for rare ones."
    )
    undesirable_weight: float = Field(
        default=1.0, gt=0, description="Weight of undesirable completions, for rare ones."
    )

    def measure(self, inputs: GroupInputs) -> Tensor:
        """[N, 1] nats: the log-ratio of the mismatched completion."""
        if inputs.mismatched is None:
            raise DataError(
                "Objective `kto` needs `mismatched`, the log-ratio of another prompt's completion "
                "behind each prompt, or `coupling`, what the step gave: there is neither."
            )
        return inputs.mismatched[:, None]

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """[S, 1] nats: the KL estimate, the same for each completion."""
        del carried
        return measured.mean().clamp(min=0).expand(len(measured), 1), {}

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, and the KL estimate [nats]."""
        inputs = self.checked(inputs)
        rho = group_logratio(inputs, inputs.reference)
        label, kl = present(inputs.label), present(inputs.coupling)[:, 0]
        gap = torch.where(label, rho - kl, kl - rho)
        # Of two numbers torch.where makes float32, which is not what the fields say in float64.
        weights = torch.full_like(rho, self.undesirable_weight)
        weights = weights.masked_fill(label, self.desirable_weight)
        return GroupOutput(
            loss=weights * torch.sigmoid(-self.beta * gap),
            reward=self.beta * rho.detach(),
            metrics={"kl": kl},
        )
