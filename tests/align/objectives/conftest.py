"""The golden pairs of every objective's test file, and the comparison with a golden row.

Two pairs of ragged length; sums of the token log-probs in brackets:

                        pair 0                              pair 1
    policy chosen       -0.9 -1.3 -0.4       (-2.6)         -2.0 -0.7 -1.1 -0.3    (-4.1)
    policy rejected     -1.2 -0.8 -2.1 -0.5  (-4.6)         -0.6 -1.9              (-2.5)
    reference chosen    -1.0 -1.1 -0.7       (-2.8)         -1.8 -0.9 -1.0 -0.9    (-4.6)
    reference rejected  -1.1 -1.0 -1.7 -0.6  (-4.4)         -0.8 -1.4              (-2.2)

so that rho_chosen = [0.2, 0.5], rho_rejected = [-0.2, -0.3] and their gap is h = [0.4, 0.8].
The scores stand the wrong way round in pair 1 on purpose.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.objectives import Objective
from align.types import Logps, Pair, PairInputs

ROWS = {
    "policy": (
        [[-0.9, -1.3, -0.4], [-2.0, -0.7, -1.1, -0.3]],
        [[-1.2, -0.8, -2.1, -0.5], [-0.6, -1.9]],
    ),
    "reference": (
        [[-1.0, -1.1, -0.7], [-1.8, -0.9, -1.0, -0.9]],
        [[-1.1, -1.0, -1.7, -0.6], [-0.8, -1.4]],
    ),
    "guide": (
        [[-0.7, -1.5, -0.5], [-1.6, -0.8, -1.2, -0.4]],
        [[-1.4, -0.9, -2.0, -0.4], [-0.7, -2.0]],
    ),
    "previous": (
        [[-0.95, -1.25, -0.5], [-1.9, -0.8, -1.05, -0.25]],
        [[-1.15, -0.9, -1.95, -0.55], [-0.65, -1.6]],
    ),
}
SCORES = ([1.5, 0.2], [-0.5, 0.7])
# log sum_v p(v)^2 at the policy's tokens, nats; 7 stands where the mask is False.
COLLISION = {
    "chosen": [[-0.5, -1.0, -0.3, 7], [-1.2, -0.6, -0.9, -0.2]],
    "rejected": [[-0.8, -0.7, -1.1, -0.4], [-0.5, -1.0, 7, 7]],
}


def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    values = [[*row, *[0.0] * (width - len(row))] for row in rows]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return torch.tensor(values, dtype=dtype), torch.tensor(mask)


def logps(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Logps:
    return Logps(*padded(rows, dtype))


@pytest.fixture
def golden() -> Callable[..., PairInputs]:
    """golden(dtype=..., **fields): policy and reference as above, `fields` beside or instead."""

    def build(dtype: torch.dtype = torch.float64, **fields: Any) -> PairInputs:
        roles = {
            role: Pair(logps(chosen, dtype), logps(rejected, dtype))
            for role, (chosen, rejected) in ROWS.items()
        }
        inputs = PairInputs(policy=roles["policy"], reference=roles["reference"])
        given = {name: roles[name] if value is ... else value for name, value in fields.items()}
        return replace(inputs, **given)

    return build


@pytest.fixture
def weights() -> Callable[..., Pair[Tensor]]:
    """weights(chosen rows, rejected rows): ragged rows as a padded `token_weight`."""

    def build(
        chosen: Sequence[Sequence[float]],
        rejected: Sequence[Sequence[float]],
        dtype: torch.dtype = torch.float64,
    ) -> Pair[Tensor]:
        return Pair(padded(chosen, dtype)[0], padded(rejected, dtype)[0])

    return build


@pytest.fixture
def gradients() -> Callable[[Objective, PairInputs], tuple[Tensor, Pair[Tensor]]]:
    """gradients(objective, inputs): the loss [B], and the gradient [B, T] of its mean per side."""

    def run(objective: Objective, inputs: PairInputs) -> tuple[Tensor, Pair[Tensor]]:
        chosen = inputs.policy.chosen.token.detach().clone().requires_grad_()
        rejected = inputs.policy.rejected.token.detach().clone().requires_grad_()
        policy = Pair(
            replace(inputs.policy.chosen, token=chosen),
            replace(inputs.policy.rejected, token=rejected),
        )
        loss = objective(replace(inputs, policy=policy)).loss
        grads = torch.autograd.grad(loss.mean(), [chosen, rejected], materialize_grads=True)
        return loss.detach(), Pair(*grads)

    return run


def close(found: Tensor, wanted: Sequence[Any] | Tensor) -> None:
    """Within 1e-9 in float64 (the golden figures have 10 decimals), 1e-5 in float32."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    rtol, atol = (1e-9, 1e-9) if found.dtype == torch.float64 else (1e-5, 1e-6)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


@pytest.fixture
def assert_golden(
    gradients: Callable[[Objective, PairInputs], tuple[Tensor, Pair[Tensor]]],
) -> Callable[..., None]:
    """assert_golden(objective, inputs, mean, per pair, dL/dlogp chosen, dL/dlogp rejected).

    A sequence's log-prob is the sum of its tokens', so its gradient is that of every token; 0 where
    the mask is False. A nested list gives the gradient token by token (0 appended as needed).
    """

    def compare(
        objective: Objective,
        inputs: PairInputs,
        mean: float,
        per_pair: Sequence[float],
        chosen: Sequence[Any],
        rejected: Sequence[Any],
    ) -> None:
        loss, found = gradients(objective, inputs)
        close(loss, per_pair)
        close(loss.mean(), torch.tensor(mean, dtype=torch.float64))
        for side, wanted in (("chosen", chosen), ("rejected", rejected)):
            mask = getattr(inputs.policy, side).mask
            rows = [
                row if isinstance(row, list) else [row] * int(n)
                for row, n in zip(wanted, mask.sum(1), strict=True)
            ]
            close(getattr(found, side), padded(rows, torch.float64)[0])

    return compare


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def table_optimum() -> Callable[..., Tensor]:
    """table_optimum(objective, roles, **columns): the probabilities [V] that minimise the loss.

    The policy is a softmax table over V completions of one token; the pairs are all i < j. `roles`
    are tables of log-probs [V]; a column is called with the two indices of every pair.
    """

    def fit(
        objective: Objective, roles: dict[str, Tensor], **columns: Callable[..., Any]
    ) -> Tensor:
        size = len(next(iter(roles.values())))
        first, second = torch.triu_indices(size, size, offset=1)
        mask = torch.ones(len(first), 1, dtype=torch.bool)

        def pair(table: Tensor) -> Pair[Logps]:
            return Pair(Logps(table[first, None], mask), Logps(table[second, None], mask))

        fixed = {role: pair(table) for role, table in roles.items()}
        fixed |= {name: column(first, second) for name, column in columns.items()}
        logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [logits],
            max_iter=500,
            tolerance_grad=1e-12,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            inputs = PairInputs(policy=pair(logits.log_softmax(0)), **fixed)
            loss = objective(inputs).loss.mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return logits.detach().softmax(0)

    return fit


@pytest.fixture
def scores() -> Callable[..., Pair[Tensor]]:
    """scores(chosen, rejected): [B] each; by default those of the golden pairs."""

    def build(
        chosen: Sequence[float] = SCORES[0],
        rejected: Sequence[float] = SCORES[1],
        dtype: torch.dtype = torch.float64,
    ) -> Pair[Tensor]:
        return Pair(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))

    return build


@pytest.fixture
def aligned() -> Callable[[PairInputs], PairInputs]:
    """aligned(golden pairs): with a collision at each of the policy's tokens."""

    def build(inputs: PairInputs) -> PairInputs:
        def side(name: str, logps: Logps) -> Logps:
            return replace(logps, collision=torch.tensor(COLLISION[name], dtype=logps.token.dtype))

        policy = inputs.policy
        sides = Pair(side("chosen", policy.chosen), side("rejected", policy.rejected))
        return replace(inputs, policy=sides)

    return build
