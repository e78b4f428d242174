"""A loss over groups, groups of unequal sizes, and what a step of them must give."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import softplus

from align.objectives.coupled import Carried, CoupledGroups
from align.objectives.groups.base import GroupObjective, group_logratio
from align.types import GroupInputs, GroupOutput


class Listwise(GroupObjective, frozen=True):
    """L_i = -sum over the group of softmax(score) log softmax(beta rho), at each of its rows."""

    name: str = "listwise"
    needs = frozenset({"reference", "score"})
    beta: float = 0.5

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        inputs = self.checked(inputs)
        reward = self.beta * group_logratio(inputs, inputs.reference)
        together = inputs.group[:, None] == inputs.group
        assert inputs.score is not None

        def log_softmax(values: Tensor) -> Tensor:
            inside = values.expand(len(values), -1).masked_fill(~together, -torch.inf)
            return values - inside.logsumexp(dim=1)

        terms = -log_softmax(inputs.score).exp() * log_softmax(reward)
        loss = (together * terms).sum(dim=1)
        return GroupOutput(loss, reward.detach(), {})


class Centred(CoupledGroups, frozen=True):
    """L_i = log(1 + exp(-rho_i d_i)), d_i = rho_i less the step's mean: each has its own."""

    name: str = "centred"
    needs = frozenset({"reference"})
    measures, gives = ("log-ratio",), ("distance",)

    def measure(self, inputs: GroupInputs) -> Tensor:
        return group_logratio(inputs, inputs.reference)[:, None]

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        return measured - measured.mean(), {}

    def __call__(self, inputs: GroupInputs) -> GroupOutput:
        inputs = self.checked(inputs)
        rho = group_logratio(inputs, inputs.reference)
        assert inputs.coupling is not None
        loss = softplus(-rho * inputs.coupling[:, 0])
        return GroupOutput(loss, rho.detach(), {"distance": inputs.coupling[:, 0]})


def make_groups(n: int, seed: int = 0) -> Dataset:
    """N prompts of 2-6 tokens with 1 to 4 completions of 2-9, the end token last, with scores."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def tokens(low: int, high: int) -> list[int]:
        return torch.randint(4, 30, (number(low, high),), generator=generator).tolist()

    rows: list[dict[str, Any]] = []
    for i in range(n):
        size = 1 + i % 4
        rows.append(
            {
                "prompt_ids": [1, *tokens(2, 7)],
                "completions_ids": [[*tokens(2, 10), 2] for _ in range(size)],
                "scores": torch.randn(size, generator=generator).tolist(),
                "labels": [bool(number(0, 3)) for _ in range(size)],
            }
        )
    return Dataset.from_list(rows)


def settings(out: str, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": out,
        "learning_rate": 5e-3,
        "max_steps": 3,
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
    } | changes
