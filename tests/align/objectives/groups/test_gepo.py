"""GEPO: golden rows of three readings, DPO as its smallest case, and its variance in numpy."""

import numpy as np
import pytest
import torch

from align.objectives import DPO, GEPO
from align.types import Logps, Pair, PairInputs

RHO = [0.4, -0.1, 0.3, -0.2, 0.5]
LABELS = [True, True, True, False, False]


@pytest.mark.parametrize(
    ("objective", "loss", "wins"),
    [
        # gap = 0.2 - 0.15 = 0.05; softplus(-0.005) = 0.6906503056; squares (0.04 + 0.09 + 0.01)
        # over 3: 0.0466666667. dL/drho(w) = -0.1 sigmoid(-0.005) / 3 + 2 (rho - 0.2) / 3
        (
            GEPO(beta=0.1),
            0.7373169722,
            [0.1167083332, -0.2166250001, 0.0500416666],
        ),
        # the variance of beta rho: weight beta^2
        (
            GEPO(beta=0.1, variance_weight=0.01),
            0.6911169722,
            [-0.0152916668, -0.0186250001, -0.0159583334],
        ),
        # over n - 1: 0.07
        (
            GEPO(beta=0.1, variance="sample"),
            0.7606503056,
            [0.1833749999, -0.3166250001, 0.0833749999],
        ),
    ],
)
def test_golden(objective, loss, wins, of_rho, tensors, assert_golden, dtype):
    lost = [0.0249375001, 0.0249375001]  # 0.1 sigmoid(-0.005) / 2
    inputs = tensors(of_rho(RHO, label=LABELS), dtype)
    # The group's loss stands at each of its completions, so their mean has the group's gradient.
    assert_golden(objective, inputs, [loss] * 5, [*wins, *lost])


@pytest.mark.parametrize("variance", ["population", "sample"])
def test_it_is_the_formula_in_numpy(variance, random_rows, by_group, assert_is):
    rows = random_rows(0, sizes=(5, 2, 1, 4))
    rows[5]["label"] = rows[6]["label"] = False  # a group of losers alone

    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            rho = {i: sum(rows[i]["policy"]) - sum(rows[i]["reference"]) for i in members}
            won = np.array([rho[i] for i in members if rows[i]["label"]])
            lost = np.array([rho[i] for i in members if not rows[i]["label"]])
            if len(won) == 0 or len(lost) == 0:
                continue
            spread = won.var(ddof=variance == "sample") if len(won) > 1 else 0.0
            loss = np.log1p(np.exp(-0.3 * (won.mean() - lost.mean()))) + 0.7 * spread
            for i in members:
                losses[i] = loss
        return losses

    assert_is(GEPO(beta=0.3, variance_weight=0.7, variance=variance), rows, formula)


def test_one_winner_and_one_loser_are_dpo(golden, tensors, gradients):
    inputs = tensors(golden(0, 1, 2, 3, group=[0, 0, 1, 1]))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    for variance in ("population", "sample"):
        loss, _ = gradients(GEPO(beta=0.5, variance=variance), inputs)
        torch.testing.assert_close(loss[0::2], DPO(beta=0.5)(pairs).loss)
        torch.testing.assert_close(loss[1::2], loss[0::2])


def test_equal_winners_have_no_variance_and_a_shift_of_all_leaves_it(of_rho, tensors):
    def variance(rho: list[float]) -> list[float]:
        return GEPO()(tensors(of_rho(rho, label=LABELS))).metrics["variance"].tolist()

    assert variance([0.3, 0.3, 0.3, 1.0, 2.0]) == pytest.approx([0.0] * 5, abs=1e-30)
    shifted = [x + 1.7 for x in RHO[:3]] + RHO[3:]
    assert variance(shifted) == pytest.approx(variance(RHO), abs=1e-14)


def test_a_group_of_one_kind_has_a_loss_of_0_with_a_graph(of_rho, tensors, gradients):
    for label in (True, False):
        inputs = tensors(of_rho([0.4, -0.1, 0.3], label=[label] * 3))
        loss, gradient = gradients(GEPO(), inputs)
        assert loss.tolist() == [0.0] * 3
        assert not gradient.any()
        assert GEPO()(inputs).metrics["compares"].tolist() == [0.0] * 3
