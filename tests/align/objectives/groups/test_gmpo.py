"""GMPO: golden rows, GSPO without a clip, GRPO at one token, one far token moves little."""

import math

import pytest
import torch

from align.objectives import GMPO, GSPO, GroupRelative


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2], log-ratios cut at 0.06 where A > 0 and at -0.08 elsewhere:
    # [0.05, -0.05, 0.06], [-0.05, 0.1, -0.08, 0.05], [-0.08, 0.1, -0.05, -0.05]; means 0.02, 0.005,
    # -0.02: L = -A exp of these, dL/dlogp = -A exp / T / 3, and 0 where cut
    first, second, third = -0.1246912749, 0.0753759391, 0.0163366446
    assert_golden(
        GMPO(scale="none", clip_low=0.08, clip_high=0.06),
        tensors(golden(0, 1, 2), dtype),
        [-1.1222214740, 0.9045112688, 0.1960397347],
        [[first, first, 0.0], [second, second, 0.0, second], [0.0, third, third, third]],
    )


def test_where_nothing_is_stopped_it_is_gspo_without_a_clip(random_rows, tensors, gradients):
    inputs = tensors(random_rows(0))
    ours = gradients(GMPO(clip_low=50.0, clip_high=50.0, kl_beta=0.2), inputs)
    theirs = gradients(GSPO(clip_low=1e6, clip_high=1e6, kl_beta=0.2), inputs)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_completions_of_one_token_are_group_relative(of_rho, tensors, gradients):
    # a clip of log u at c is one of u at e^c
    rho = [0.5, -0.3, 0.1, -0.05, 0.6, -0.4]
    inputs = tensors(of_rho(rho, score=[1.0, 0.2, -0.5, 0.0, -1.0, 0.4], group=[0, 0, 0, 1, 1, 1]))
    ours = gradients(GMPO(clip_low=0.25, clip_high=0.35), inputs)
    low, high = 1 - math.exp(-0.25), math.exp(0.35) - 1
    theirs = gradients(GroupRelative(clip=low, clip_high=high), inputs)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    clipped = GMPO(clip_low=0.25, clip_high=0.35)(inputs).metrics["clipped"]
    assert clipped.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_one_far_token_moves_a_good_completion_by_its_clip_alone(golden, tensors, gradients):
    rows = golden(0, 1, score=[1.0, -1.0])
    for row in rows:
        row["policy"] = [row["previous"][0] + 9.0, *row["previous"][1:]]
    loss, found = gradients(GMPO(scale="none"), tensors(rows))
    assert loss.tolist() == pytest.approx([-math.exp(0.4 / 3), math.exp(9.0 / 4)])
    assert found[0, 0] == 0
    assert found[0, 1] < 0 < found[1, 0]
