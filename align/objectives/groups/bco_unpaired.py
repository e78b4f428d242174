"""BCO on single completions: a classifier whose logit is the reward less a running mean.

Binary Classifier Optimization, Jung et al. 2024, arXiv:2404.04656, as in the BCO trainer of TRL
before 1.0: there the shift is a mean of batch means, here one of rewards, which is the same for
batches of one size. The pair form is `bco`.

Differs from the paper: its weights by a density ratio, for desirable and undesirable completions of
different prompts, are left out; they take a text embedder. Its equation numbers are not verified.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from align.objectives.base import present
from align.objectives.coupled import Carried, CoupledGroups
from align.objectives.groups.base import group_logratio
from align.types import GroupInputs, GroupOutput


class BCOUnpaired(CoupledGroups, frozen=True):
    r"""L = -log sigmoid(r - delta) if desirable, else -log sigmoid(-(r - delta)),   r = beta rho.

    With rho as in DPO, and delta the mean of r over all completions trained on so far, those of
    this step included; 0 with `shift: zero`. An evaluation takes the delta of the last training
    step, 0 before the first. Which completions share a prompt plays no part. Reward: r - delta.
    """

    name: Literal["bco_unpaired"] = "bco_unpaired"
    needs = frozenset({"reference", "label"})
    measures = ("reward",)
    gives = ("shift",)

    beta: float = Field(default=0.1, gt=0, description="Reward per nat of log-ratio, as in DPO.")
    shift: Literal["running_mean", "zero"] = Field(
        default="running_mean", description="What the rewards are compared with."
    )

    @property
    def couples(self) -> bool:
        """Whether there is a mean to keep."""
        return self.shift == "running_mean"

    def measure(self, inputs: GroupInputs) -> Tensor:
        """[N, 1]: the reward."""
        return self.beta * group_logratio(inputs, inputs.reference)[:, None]

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """[S, 1]: the mean reward so far; its sum and count run on."""
        total = carried.get("total", 0.0) + float(measured.double().sum())
        ahead = {"total": total, "count": carried.get("count", 0.0) + len(measured)}
        return self.couple_held_out(measured, ahead), ahead

    def couple_held_out(self, measured: Tensor, carried: Carried) -> Tensor:
        """[S, 1]: the mean reward of what was trained on."""
        count = carried.get("count", 0.0)
        delta = carried["total"] / count if count else 0.0
        return measured.new_full((len(measured), 1), delta)

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        """Loss and reward of N completions, and the shift."""
        inputs = self.checked(inputs)
        reward, label = self.beta * group_logratio(inputs, inputs.reference), present(inputs.label)
        delta = torch.zeros_like(reward.detach())
        if self.couples:
            delta = present(inputs.coupling)[:, 0]
        logit = reward - delta
        return GroupOutput(
            loss=softplus(torch.where(label, -logit, logit)),
            reward=logit.detach(),
            metrics={"shift": delta},
        )
