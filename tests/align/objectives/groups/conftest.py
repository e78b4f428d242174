"""Completions as plain rows, their tensors, and the comparison with a formula in plain numbers.

A row is a dict: `policy`, `reference`, `previous`, `guide` are token log-probs, the rest numbers.
The golden rows are those of the pairs' tests: chosen and rejected of pair 0, then of pair 1.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.objectives import GroupObjective
from align.types import GroupInputs, Logps

Row = dict[str, Any]
ROLES = ("policy", "reference", "previous", "guide")
NUMBERS = ("score", "advantage", "mismatched")

GOLDEN: list[Row] = [
    {
        "policy": [-0.9, -1.3, -0.4],
        "reference": [-1.0, -1.1, -0.7],
        "previous": [-0.95, -1.25, -0.5],
        "guide": [-0.7, -1.5, -0.5],
        "score": 1.5,
        "label": True,
    },
    {
        "policy": [-1.2, -0.8, -2.1, -0.5],
        "reference": [-1.1, -1.0, -1.7, -0.6],
        "previous": [-1.15, -0.9, -1.95, -0.55],
        "guide": [-1.4, -0.9, -2.0, -0.4],
        "score": -0.5,
        "label": False,
    },
    {
        "policy": [-2.0, -0.7, -1.1, -0.3],
        "reference": [-1.8, -0.9, -1.0, -0.9],
        "previous": [-1.9, -0.8, -1.05, -0.25],
        "guide": [-1.6, -0.8, -1.2, -0.4],
        "score": 0.2,
        "label": True,
    },
    {
        "policy": [-0.6, -1.9],
        "reference": [-0.8, -1.4],
        "previous": [-0.65, -1.6],
        "guide": [-0.7, -2.0],
        "score": 0.7,
        "label": False,
    },
]


def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    values = [[*row, *[0.0] * (width - len(row))] for row in rows]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return torch.tensor(values, dtype=dtype), torch.tensor(mask)


def tensors_of(rows: Sequence[Row], dtype: torch.dtype) -> GroupInputs:
    fields: dict[str, Any] = {"group": torch.tensor([row.get("group", 0) for row in rows])}
    for role in ROLES:
        if role in rows[0]:
            fields[role] = Logps(*padded([row[role] for row in rows], dtype))
    for name in NUMBERS:
        if name in rows[0]:
            fields[name] = torch.tensor([row[name] for row in rows], dtype=dtype)
    if "label" in rows[0]:
        fields["label"] = torch.tensor([row["label"] for row in rows])
    return GroupInputs(**fields)


@pytest.fixture
def tensors() -> Callable[..., GroupInputs]:
    """tensors(rows, dtype): rows as `GroupInputs`; what no row has is None."""

    def build(rows: Sequence[Row], dtype: torch.dtype = torch.float64) -> GroupInputs:
        return tensors_of(rows, dtype)

    return build


@pytest.fixture
def golden() -> Callable[..., list[Row]]:
    """golden(*indices, **columns): some of the golden rows, a column per keyword set on them."""

    def build(*indices: int, **columns: Sequence[Any]) -> list[Row]:
        rows = [deepcopy(GOLDEN[i]) for i in indices]
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return rows

    return build


@pytest.fixture
def of_rho() -> Callable[..., list[Row]]:
    """of_rho(rho, **columns): completions of one token with these log-ratios to every role."""

    def build(rho: Sequence[float], **columns: Sequence[Any]) -> list[Row]:
        rows: list[Row] = [
            {"policy": [value - 2.0], "reference": [-2.0], "previous": [-2.0], "guide": [-2.0]}
            for value in rho
        ]
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return rows

    return build


@pytest.fixture
def random_rows() -> Callable[..., list[Row]]:
    """random_rows(seed, sizes): ragged completions with every role and column, in groups."""

    def build(
        seed: int = 0, sizes: Sequence[int] = (4, 2, 1, 3), scores: Sequence[float] | None = None
    ) -> list[Row]:
        def some(count: int, low: float, high: float) -> list[float]:
            drawn = torch.rand(count, generator=generator, dtype=torch.float64)
            return (low + (high - low) * drawn).tolist()

        generator = torch.Generator().manual_seed(seed)
        rows = list[Row]()
        for group, size in enumerate(sizes):
            for i in range(size):
                length = int(torch.randint(1, 6, (1,), generator=generator))
                row: Row = {role: some(length, -2, 0) for role in ROLES}
                row |= dict(zip(NUMBERS, some(3, -1, 1.5), strict=True))
                row |= {"group": group, "label": i % 2 == 0}
                rows.append(row)
        if scores is not None:
            for i, row in enumerate(rows):
                row["score"] = scores[i % len(scores)]
        return rows

    return build


def loss_and_gradient(objective: GroupObjective, inputs: GroupInputs) -> tuple[Tensor, Tensor]:
    leaf = inputs.policy.token.detach().clone().requires_grad_()
    loss = objective(replace(inputs, policy=Logps(leaf, inputs.policy.mask))).loss
    (gradient,) = torch.autograd.grad(loss.mean(), leaf)
    return loss.detach(), gradient


@pytest.fixture
def gradients() -> Callable[[GroupObjective, GroupInputs], tuple[Tensor, Tensor]]:
    """gradients(objective, inputs): the loss [N], and the gradient [N, T] of its mean."""
    return loss_and_gradient


def close(found: Tensor, wanted: Any) -> None:
    """Within 1e-9 in float64 (the golden figures have 10 decimals), 1e-5 in float32."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    rtol, atol = (1e-9, 1e-9) if found.dtype == torch.float64 else (1e-5, 1e-6)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


@pytest.fixture
def assert_golden() -> Callable[..., None]:
    """assert_golden(objective, inputs, losses, gradients): dL/dtoken of each row, of the mean.

    A gradient that is one number is that of every token of the row; 0 where the mask is False.
    """

    def compare(
        objective: GroupObjective,
        inputs: GroupInputs,
        losses: Sequence[float],
        wanted: Sequence[float | Sequence[float]],
    ) -> None:
        loss, found = loss_and_gradient(objective, inputs)
        close(loss, losses)
        lengths = inputs.policy.lengths().tolist()
        rows = [
            list(row) if isinstance(row, Sequence) else [row] * length
            for row, length in zip(wanted, lengths, strict=True)
        ]
        close(found, padded(rows, torch.float64)[0])

    return compare


@pytest.fixture
def assert_is() -> Callable[..., None]:
    """assert_is(objective, rows, formula): losses and gradients are those of plain numbers.

    `formula(rows)` gives the loss of every row; its gradient is taken by central differences.
    """

    def compare(
        objective: GroupObjective,
        rows: list[Row],
        formula: Callable[[list[Row]], Sequence[float]],
    ) -> None:
        loss, gradient = loss_and_gradient(objective, tensors_of(rows, torch.float64))
        torch.testing.assert_close(
            loss, torch.tensor(formula(rows), dtype=torch.float64), rtol=1e-10, atol=1e-10
        )
        step = 1e-5
        for i, row in enumerate(rows):
            for t in range(len(row["policy"])):
                means = list[float]()
                for move in (step, -step):
                    moved = deepcopy(rows)
                    moved[i]["policy"][t] += move
                    means.append(sum(formula(moved)) / len(rows))
                slope = (means[0] - means[1]) / (2 * step)
                assert float(gradient[i, t]) == pytest.approx(slope, rel=1e-6, abs=1e-8), (i, t)

    return compare


@pytest.fixture
def by_group() -> Callable[[Sequence[Mapping[str, Any]]], dict[Any, list[int]]]:
    """by_group(rows): the indices of each group's rows."""

    def build(rows: Sequence[Mapping[str, Any]]) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            found.setdefault(row["group"], []).append(i)
        return found

    return build


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
