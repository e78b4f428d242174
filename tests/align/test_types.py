"""`Logps`: what a sum, a mean and a length are, and that masked slots count for nothing."""

import dataclasses

import pytest
import torch

from align.types import Logps, Pair, at_least_float32

NAN, INF = float("nan"), float("inf")
MASK = torch.tensor([[True, True, False], [False, True, False]])


def logps(values, dtype=torch.float64):
    return Logps(torch.tensor(values, dtype=dtype), MASK)


def test_sums_means_and_lengths():
    x = logps([[-1.0, -0.5, 0.0], [0.0, -2.0, 0.0]])
    assert x.lengths().tolist() == [2, 1]
    assert x.total().tolist() == [-1.5, -2.0]
    assert x.average().tolist() == [-0.75, -2.0]


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_masked_slots_are_never_read_and_get_exactly_no_gradient(garbage):
    x = logps([[-1.0, -0.5, garbage], [garbage, -2.0, garbage]])
    x.token.requires_grad_()
    assert x.total().tolist() == [-1.5, -2.0]
    (x.total() * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.token.grad is not None
    assert x.token.grad.tolist() == [[3.0, 3.0, 0.0], [0.0, 5.0, 0.0]]
    x.token.grad = None
    x.average().sum().backward()
    assert x.token.grad.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_in_float32_or_wider(given, wanted):
    x = logps([[-1.0, -0.5, 0.0], [0.0, -2.0, 0.0]], given)
    assert x.total().dtype == wanted
    assert x.average().dtype == wanted
    assert at_least_float32(x.token).dtype == wanted


def test_a_bfloat16_sum_loses_no_small_token():
    # In bfloat16, 256 + 0.5 is 256: 8 bits of mantissa
    token = torch.full((1, 101), -0.5, dtype=torch.bfloat16)
    token[0, 0] = -256.0
    assert Logps(token, torch.ones(1, 101, dtype=torch.bool)).total().item() == -306.0


def test_detached_keeps_the_values_and_drops_the_gradient():
    x = logps([[-1.0, -0.5, 0.0], [0.0, -2.0, 0.0]])
    x.token.requires_grad_()
    assert not x.detached().token.requires_grad
    assert torch.equal(x.detached().token, x.token)
    assert x.detached().mask is x.mask


@pytest.mark.parametrize(
    ("token", "mask", "text"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool), r"one shape \[B, T\]"),
        (torch.zeros(2), torch.ones(2, dtype=torch.bool), r"one shape \[B, T\]"),
        (torch.zeros(2, 3), torch.ones(2, 3), "must be bool"),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.long), "must be bool"),
    ],
)
def test_log_probs_of_another_shape_or_mask_are_refused(token, mask, text):
    with pytest.raises(ValueError, match=text):
        Logps(token, mask)


def test_values_are_frozen():
    x = logps([[-1.0, -0.5, 0.0], [0.0, -2.0, 0.0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.mask = MASK
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pair(1, 2).chosen = 3
