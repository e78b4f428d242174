"""Plackett-Luce: golden row, DPO as its smallest case, the formula in numpy, ties, invariance."""

from itertools import permutations

import numpy as np
import pytest
import torch

from align.objectives import DPO, PlackettLuce
from align.types import Logps, Pair, PairInputs


def test_golden(of_rho, tensors, assert_golden, dtype):
    # r = 0.5 [0.2, -0.4, 1.0] = [0.1, -0.2, 0.5], ranking by score: 2, 0, 1
    # first of three: log(e^0.5 + e^0.1 + e^-0.2) - 0.5 = 1.2712978 - 0.5 (1 + 0.6703200 + 0.4965853
    # = 2.1669053, whose log is 0.7733000); second: log(1 + e^-0.3) = 0.5543552; sum 1.3276552
    # shares: first p = [0.3093444, 0.2291679, 0.4614877], second sigmoid(-0.3) = 0.4255575
    # dL/drho = 0.5 [p0 - (1 - 0.5744425), p1 + 0.4255575, p2 - 1]
    rows = of_rho([0.2, -0.4, 1.0], score=[3.0, -1.0, 7.0])
    first = np.exp([0.1, -0.2, 0.5]) / np.exp([0.1, -0.2, 0.5]).sum()
    second = 1 / (1 + np.exp(0.3))
    assert first.tolist() == pytest.approx([0.3093444, 0.2291679, 0.4614877], abs=1e-7)
    loss = -np.log(first[2]) - np.log(1 - second)
    assert loss == pytest.approx(1.3276552, abs=1e-7)
    gradient = 0.5 * np.array([first[0] - second, first[1] + second, first[2] - 1])
    assert_golden(PlackettLuce(beta=0.5), tensors(rows, dtype), [loss] * 3, gradient.tolist())


def test_it_is_the_formula_in_numpy(random_rows, by_group, assert_is):
    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            ranking = sorted(members, key=lambda i: -rows[i]["score"])
            reward = [0.6 * (sum(rows[i]["policy"]) - sum(rows[i]["reference"])) for i in ranking]
            loss = 0.0
            for k in range(len(reward)):
                loss -= np.log(np.exp(reward[k]) / np.exp(reward[k:]).sum())
            for i in members:
                losses[i] = float(loss)
        return losses

    assert_is(PlackettLuce(beta=0.6), random_rows(0), formula)


def test_the_probabilities_of_all_rankings_sum_to_1(of_rho, tensors):
    rho = [0.3, -1.0, 0.7, 0.2]
    total = 0.0
    for scores in permutations([1.0, 2.0, 3.0, 4.0]):
        loss = PlackettLuce(beta=0.8)(tensors(of_rho(rho, score=list(scores)))).loss
        total += float(torch.exp(-loss[0]))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_two_completions_are_dpo(golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3, group=[0, 0, 1, 1], score=[2.0, 1.0, 5.0, 1.0]))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    found = PlackettLuce(beta=0.5)(inputs).loss
    torch.testing.assert_close(found, DPO(beta=0.5)(pairs).loss.repeat_interleave(2))


def test_a_tie_is_not_compared(of_rho, tensors):
    """Two of equal score stand against the third each, and not against each other."""
    rows = of_rho([0.4, -0.2, 0.1], score=[1.0, 1.0, 0.0])
    found = PlackettLuce(beta=1.0)(tensors(rows)).loss[0].item()
    assert found == pytest.approx(np.log1p(np.exp(0.1 - 0.4)) + np.log1p(np.exp(0.1 + 0.2)))
    low = of_rho([0.4, -0.2, 0.1], score=[1.0, 0.0, 0.0])
    found = PlackettLuce(beta=1.0)(tensors(low)).loss[0].item()
    assert found == pytest.approx(-np.log(np.exp(0.4) / np.exp([0.4, -0.2, 0.1]).sum()))


def test_only_the_order_of_scores_and_the_differences_of_rewards_count(random_rows, tensors):
    rows = random_rows(1)
    other = [{**r, "score": np.exp(3 * r["score"]) - 4 * r["group"]} for r in rows]
    found, wanted = (PlackettLuce()(tensors(given)).loss for given in (other, rows))
    torch.testing.assert_close(found, wanted)
    shifted = [{**r, "policy": [r["policy"][0] + r["group"], *r["policy"][1:]]} for r in rows]
    torch.testing.assert_close(PlackettLuce()(tensors(shifted)).loss, wanted)
