"""WPO: golden rows, constant weights, and DPO where every weight is 1."""

import math
from dataclasses import replace

import pytest
import torch

from align.objectives import DPO, WPO
from align.types import Logps, Pair


def test_golden(golden, assert_golden, dtype):
    # w = exp(average): chosen [0.4203503845, 0.3587964654], rejected [0.3166367694, 0.2865047969]
    # L = w_c w_r L_DPO; dL/dlogp_chosen = -w_c w_r 0.1 sigmoid(-m) / 2: none flows through w
    assert_golden(
        WPO(beta=0.1),
        golden(dtype),
        0.0784225744,
        [0.0896214224, 0.0672237265],
        [-0.0032609194, -0.0024671806],
        [0.0032609194, 0.0024671806],
    )


def test_golden_aligned(golden, assert_golden, aligned, dtype):
    # Tokens less their collisions, on average: chosen [-0.8 / 3, -1.2 / 4], rejected
    # [-1.6 / 4, -1.0 / 2]; w = exp of it: [0.7659283384, 0.7408182207], [0.670320046, 0.6065306597]
    # L = w_c w_r log(1 + e^-[0.04, 0.08]); dL/dlogp_chosen = -w_c w_r 0.1 sigmoid(-m) / 2
    objective = WPO(beta=0.1, alignment="sampled")
    inputs = aligned(golden(dtype))
    assert_golden(
        objective,
        inputs,
        0.3197726381,
        [0.3457079627, 0.2938373134],
        [-0.0125787536, -0.0107841346],
        [0.0125787536, 0.0107841346],
    )
    metrics = objective(inputs).metrics
    assert metrics["weights/chosen"].tolist() == pytest.approx([0.7659283384, 0.7408182207])
    assert metrics["weights/rejected"].tolist() == pytest.approx([0.6703200460, 0.6065306597])


@pytest.mark.parametrize("size", [2, 50_000])
def test_where_every_token_is_equally_likely_aligned_weights_are_1(golden, size):
    """log p = log 1/V, and log sum p^2 = log V (1/V)^2 = log 1/V."""
    inputs = golden()
    uniform = [
        Logps(
            torch.full_like(side.token, -math.log(size)),
            side.mask,
            collision=torch.full_like(side.token, -math.log(size)),
        )
        for side in (inputs.policy.chosen, inputs.policy.rejected)
    ]
    inputs = replace(inputs, policy=Pair(*uniform))
    found = WPO(beta=0.3, alignment="sampled")(inputs).loss
    torch.testing.assert_close(found, DPO(beta=0.3)(inputs).loss)
    assert (WPO(beta=0.3)(inputs).loss < 0.5 * found).all()


def test_the_weights_are_told(golden):
    metrics = WPO()(golden()).metrics
    assert metrics["weights/chosen"].tolist() == pytest.approx([0.4203503845, 0.3587964654])
    assert metrics["weights/rejected"].tolist() == pytest.approx([0.3166367694, 0.2865047969])


@pytest.mark.parametrize("p", [1.0, 0.6])
def test_where_both_sides_are_certain_it_is_dpo(golden, p):
    inputs = golden()
    certain = Pair(
        *(
            Logps(torch.zeros_like(side.token), side.mask)
            for side in (inputs.policy.chosen, inputs.policy.rejected)
        )
    )
    preference = torch.full((2,), p, dtype=torch.float64)
    sure = golden(policy=certain, preference=preference)
    torch.testing.assert_close(WPO(beta=0.3)(sure).loss, DPO(beta=0.3)(sure).loss)


def test_the_reward_is_that_of_dpo(golden):
    reward = WPO(beta=0.5)(golden()).reward
    assert reward.chosen.tolist() == pytest.approx([0.1, 0.25])
    assert reward.rejected.tolist() == pytest.approx([-0.1, -0.15])
