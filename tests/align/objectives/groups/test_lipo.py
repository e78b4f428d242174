"""LiPO-lambda: golden row, the formula in plain Python, ranks at a tie, DPO times a weight."""

import math

import numpy as np
import pytest
import torch

from align.errors import DataError
from align.objectives import DPO, LiPO
from align.types import Logps, Pair, PairInputs


def test_golden(of_rho, tensors, assert_golden, dtype):
    # r = 0.5 [0.2, -0.4, 1.0] = [0.1, -0.2, 0.5]: ranks 2, 3, 1; scores 1, 0, 0.5
    # gains 2, 1, 1.4142135624; discounts 1/log2(3), 1/log2(4), 1 = 0.6309297536, 0.5, 1
    # (0, 1): 1 * 0.1309297536 = 0.1309297536, softplus(-0.3) = 0.5543552445
    # (0, 2): 0.5857864376 * 0.3690702464 = 0.2161963448, softplus(0.4) = 0.9130152524
    # (2, 1): 0.4142135624 * 0.5 = 0.2071067812, softplus(-0.7) = 0.4031860153
    # sum 0.0725816 + 0.1973906 + 0.0835026 = 0.3534747
    # slopes w sigmoid(-(r_i - r_j)): 0.0557180942, 0.1294369966, 0.0687183826
    rows = of_rho([0.2, -0.4, 1.0], score=[1.0, 0.0, 0.5])
    weights = np.array([0.1309297536, 0.2161963448, 0.2071067812])
    loss = (weights * np.log1p(np.exp([-0.3, 0.4, -0.7]))).sum()
    assert loss == pytest.approx(0.3534747, abs=1e-7)
    a, b, c = weights / (1 + np.exp([0.3, -0.4, 0.7]))
    gradient = [0.5 * (-a - b), 0.5 * (a + c), 0.5 * (b - c)]
    assert_golden(LiPO(beta=0.5), tensors(rows, dtype), [loss] * 3, gradient)


@pytest.mark.parametrize("weight", ["lambda", "one"])
def test_it_is_the_formula_in_plain_python(weight, random_rows, by_group, assert_is):
    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            reward = {
                i: 0.6 * (sum(rows[i]["policy"]) - sum(rows[i]["reference"])) for i in members
            }
            ranks = {i: 1 + k for k, i in enumerate(sorted(members, key=lambda i: -reward[i]))}
            loss = 0.0
            for i in members:
                for j in members:
                    if rows[i]["score"] > rows[j]["score"]:
                        swap = 1.0
                        if weight == "lambda":
                            gain = 2 ** rows[i]["score"] - 2 ** rows[j]["score"]
                            far = 1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j])
                            swap = gain * abs(far)
                        loss += swap * math.log1p(math.exp(reward[j] - reward[i]))
            for i in members:
                losses[i] = loss
        return losses

    assert_is(LiPO(beta=0.6, weight=weight), random_rows(0), formula)


@pytest.mark.parametrize("scores", [[1.0, 0.0, 1.0, 0.0], [0.8, 0.3, 0.6, 0.5]])
def test_two_completions_are_dpo_times_a_weight(scores, golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3, group=[0, 0, 1, 1], score=scores))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    dpo = DPO(beta=0.5)(pairs).loss
    torch.testing.assert_close(LiPO(beta=0.5, weight="one")(inputs).loss[0::2], dpo)
    swap = [(2**a - 2**b) * (1 - 1 / math.log2(3)) for a, b in (scores[:2], scores[2:])]
    found = LiPO(beta=0.5)(inputs).loss[0::2]
    torch.testing.assert_close(found, dpo * torch.tensor(swap, dtype=torch.float64))


def test_at_the_start_ranks_are_those_of_the_scores(of_rho, tensors):
    # All rewards 0: ranks 1, 2.5, 2.5, 4 by score; no pair of the two that are equal in both
    found = LiPO(beta=1.0)(tensors(of_rho([0.0] * 4, score=[1.0, 0.5, 0.5, 0.0]))).loss[0].item()
    root, middle, last = 2**0.5, 1 / math.log2(3.5), 1 / math.log2(5)
    weights = [2 * (2 - root) * (1 - middle), 2 - 1, 2 * (root - 1) * (middle - last)]
    weights[1] *= 1 - last
    assert found == pytest.approx(math.log(2) * sum(weights))


def test_ranks_follow_the_policy_not_the_scores(of_rho, tensors):
    """A pair at the foot of the policy's ranking costs less than one at its head."""

    def loss(rho: list[float]) -> float:
        inputs = tensors(of_rho(rho, score=[1.0, 0.0, 0.5]))
        lambda_, one = (LiPO(beta=1e-6, weight=w)(inputs).loss[0].item() for w in ("lambda", "one"))
        return lambda_ / one

    # with beta ~ 0 every softplus is log 2, so this is the mean weight of three pairs
    discounts = [1.0, 1 / math.log2(3), 0.5]
    for rho, ranks in (([3.0, 2.0, 1.0], [0, 1, 2]), ([1.0, 2.0, 3.0], [2, 1, 0])):
        a, b, c = (discounts[r] for r in ranks)
        gains = [2.0, 1.0, 2**0.5]
        wanted = (
            (gains[0] - gains[1]) * abs(a - b)
            + (gains[0] - gains[2]) * abs(a - c)
            + (gains[2] - gains[1]) * abs(c - b)
        ) / 3
        assert loss(rho) == pytest.approx(wanted, rel=1e-5)


def test_raw_rewards_of_hundreds_are_refused(of_rho, tensors):
    inputs = tensors(of_rho([0.1, 0.2], score=[1.0, 70.0]))
    with pytest.raises(DataError, match=r"Completion 1 .* score 70, but `lipo`"):
        LiPO()(inputs)
    assert LiPO(weight="one")(inputs).loss.isfinite().all()
