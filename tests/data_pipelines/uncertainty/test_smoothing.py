import math

import pytest
import torch

from align.objectives.dpo import DPO
from align.types import Logps, Pair, PairInputs
from align_data.uncertainty.settings import Smoothing
from align_data.uncertainty.smoothing import alphas, probabilities

B = [0.0, 0.1, 0.5, math.log(2)]
P = [0.9, 0.6, 0.55, 0.3]


def found(mode, information=B, **settings):
    return alphas(information, P[: len(information)], Smoothing(mode=mode, **settings))


def test_information_goes_from_0_to_a_half():
    # 0.5 B / log 2
    assert found("information") == pytest.approx([0.0, 0.0721348, 0.3606738, 0.5], abs=1e-7)


def test_probability_is_what_the_estimator_leaves_to_the_other_side():
    assert found("probability") == pytest.approx([0.1, 0.4, 0.45, 0.5])


def test_odds_are_one_half_for_the_least_sure():
    # (1 - B) / (1 - log 2) at B = 0 is 3.2588914: alpha = 1 / 4.2588914
    assert found("odds")[0] == pytest.approx(1 / 4.2588914, abs=1e-7)
    assert found("odds")[-1] == 0.5
    assert found("odds") == sorted(found("odds"))
    assert found("odds", mu=3.0)[0] < found("odds")[0]


def test_the_printed_form_reverses_every_preference():
    many = [0.1] * 999 + [0.0]
    alpha = alphas(many, [0.9] * 1000, Smoothing(mode="printed"))
    assert min(alpha) >= 0.5
    assert alpha[0] == pytest.approx(0.999, abs=1e-5)


def test_a_factor_mu_cancels_as_the_paper_prints_it():
    weight = [7.0 * (1 - b) for b in B]
    assert probabilities(B, 1.0) == pytest.approx([w / sum(weight) for w in weight])


def test_probabilities_of_an_exponent():
    # .9^2 = .81, .5^2 = .25
    assert probabilities([0.1, 0.5], 2.0) == pytest.approx([0.81 / 1.06, 0.25 / 1.06])
    assert probabilities(B, 0.0) == pytest.approx([0.25] * 4)
    assert probabilities([0.6, 0.1], 1e5) == pytest.approx([0.0, 1.0])
    assert probabilities([], 1.0) == []


def test_nothing_smoothed_is_plain_dpo():
    def logps(value):
        return Logps(torch.tensor([[value, 0.3]], dtype=torch.float64), torch.ones(1, 2).bool())

    policy, reference = Pair(logps(-1.0), logps(-0.5)), Pair(logps(-1.2), logps(-0.1))
    alpha = torch.tensor(found("none", [0.2]), dtype=torch.float64)
    plain = DPO(beta=0.1)(PairInputs(policy=policy, reference=reference))
    soft = DPO(beta=0.1)(PairInputs(policy=policy, reference=reference, preference=1 - alpha))
    assert soft.loss.item() == pytest.approx(plain.loss.item(), abs=1e-7)
    half = DPO(beta=0.1)(
        PairInputs(policy=policy, reference=reference, preference=0.64 + 0 * alpha)
    )
    assert abs(half.loss.item() - plain.loss.item()) > 1e-4
