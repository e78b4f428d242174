"""LUSPO: golden rows, GSPO times length, a token's gradient whatever their number."""

import pytest
import torch

from align.objectives import GSPO, LUSPO


def test_golden(golden, tensors, assert_golden, dtype):
    # GSPO's losses [-1.1372846249, 0.8888200204, 0.1950619824] times 3, 4 and 4 tokens
    assert_golden(
        LUSPO(scale="none", clip_low=0.03, clip_high=0.04),
        tensors(golden(0, 1, 2), dtype),
        [-3.4118538746, 3.5552800818, 0.7802479296],
        [-0.3790948750, 0.2962733402, 0.0650206608],
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_it_is_gspo_times_length(beta, random_rows, tensors):
    inputs = tensors(random_rows(0))
    clip = {"clip_low": 0.1, "clip_high": 0.2, "largest_ratio": 1.5, "kl_beta": beta}
    found, gspo = LUSPO(**clip)(inputs), GSPO(**clip)(inputs)
    wanted = gspo.loss * inputs.policy.lengths()
    torch.testing.assert_close(found.loss, wanted, rtol=1e-12, atol=1e-13)
    assert found.metrics["clipped"].tolist() == gspo.metrics["clipped"].tolist()
    assert 0 < found.metrics["clipped"].sum() < len(wanted)


def test_a_tokens_gradient_on_policy_does_not_hang_on_their_number(golden, tensors, gradients):
    rows = golden(0, 1, 2, 3, score=[1.0, 1.0, -1.0, -1.0])
    inputs = tensors([{**row, "previous": row["policy"]} for row in rows])
    _, found = gradients(LUSPO(scale="none"), inputs)
    assert (4 * found[inputs.policy.mask]).tolist() == pytest.approx([-1.0] * 7 + [1.0] * 6)
    _, gspo = gradients(GSPO(scale="none"), inputs)
    assert (4 * gspo[:, 0]).tolist() == pytest.approx([-1 / 3, -1 / 4, 1 / 4, 1 / 2])


def test_the_clip_is_the_papers():
    assert (LUSPO().clip_low, LUSPO().clip_high) == (0.002, 0.0025)
