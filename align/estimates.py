"""Numbers with 95 % intervals: shares, means, divergence from a reference.

Every value is a sum over rows divided by their count, so it is the same for any batch size. A
non-finite value stops the computation; it is never averaged over.

Sources: E. B. Wilson, JASA 22 (1927) 209, for proportions; Abramowitz and Stegun 26.7.5 for the
quantile of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from align.errors import NumericalError
from align.types import Logps

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: None where there was no row to count.
        low: None where the rows are too few to say.
        high: the same.
        n: rows that `value` counts.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values; None becomes null."""
        return asdict(self)


def proportion(successes: float, n: int) -> Estimate:
    """Share of `successes` among `n` independent rows, with Wilson's score interval.

    A draw may count as half a success; the interval is then a little too wide.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} rows are no proportion.")
    if n == 0:
        return Estimate(None, None, None, 0)
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At 0 and n successes one end is exactly the share, which rounding may cross.
    low, high = min(centre - half, share), max(centre + half, share)
    return Estimate(share, max(0.0, low), min(1.0, high), n)


def mean(values: Tensor | Sequence[float], *, what: str) -> Estimate:
    """Mean of independent rows, with Student's t interval.

    Args:
        values: [N].
        what: names the values in the error.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    rows = torch.as_tensor(values, dtype=torch.float64)
    bad = (~rows.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"{what}: {len(bad)} of {len(rows)} rows are NaN or infinite, the first one is row "
            f"{bad[0] + 1}, so there is no mean. Look at these rows' log-probs and at the model's "
            f"weights."
        )
    n = len(rows)
    if n == 0:
        return Estimate(None, None, None, 0)
    value = rows.mean().item()
    if n == 1:
        return Estimate(value, None, None, 1)
    half = student_quantile(n - 1) * rows.std().item() / math.sqrt(n)
    return Estimate(value, value - half, value + half, n)


def ratio(numerators: Tensor, denominators: Tensor, *, what: str) -> Estimate:
    """Sum of numerators over sum of denominators, such as nats per token of rows of tokens.

    Rows are independent, what is counted within a row is not: the interval is that of a ratio of
    two means over rows (Cochran, Sampling Techniques, 3rd ed. 1977, eq. 6.13), with Student's t.

    Args:
        numerators: [N].
        denominators: [N], above 0.
        what: names the values in the error.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    top, bottom = numerators.double(), denominators.double()
    value = float(top.sum() / bottom.sum()) if len(top) else 0.0
    rest = mean((top - value * bottom) / bottom.mean(), what=what)
    if rest.value is None or rest.low is None or rest.high is None:
        return Estimate(None if rest.value is None else value, None, None, rest.n)
    half = (rest.high - rest.low) / 2
    return Estimate(value, value - half, value + half, rest.n)


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t with `degrees` >= 1 degrees of freedom."""
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def kl_divergence(policy: Logps, reference: Logps) -> Estimate:
    """KL(policy || reference) in nats per completion, estimated on samples of the policy.

    The estimator is the mean over samples of log p(y|x) - log p_ref(y|x), summed over the tokens of
    a completion ("k1"): unbiased, and negative now and then when the divergence is small. One
    sample per prompt makes the rows independent. A completion that was cut off counts the tokens
    that it has.

    Args:
        policy: log-probs of completions that were drawn from the policy at temperature 1.
        reference: of the same completions.
    """
    return mean(policy.total() - reference.total(), what="kl")
