"""GSPO: golden rows, GRPO at one token, one ratio for all tokens, stopped completions."""

import math

import pytest
import torch

from align.objectives import GSPO, GroupRelative


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2]; mean log-ratios 0.1 / 3, -0.05 / 4, -0.1 / 4, s = [1.0338951135,
    # 0.9875778005, 0.9753099120] within 0.97 .. 1.04: L = -A s, dL/dlogp = -A s / T / 3
    assert_golden(
        GSPO(scale="none", clip_low=0.03, clip_high=0.04),
        tensors(golden(0, 1, 2), dtype),
        [-1.1372846249, 0.8888200204, 0.1950619824],
        [-0.1263649583, 0.0740683350, 0.0162551652],
    )


def test_what_the_clip_stops_is_the_whole_completion(golden, tensors, assert_golden, dtype):
    # within 0.98 .. 1.03: the first counts 1.03, the third 0.98; the second goes on
    objective = GSPO(scale="none", clip_low=0.02, clip_high=0.03)
    inputs = tensors(golden(0, 1, 2), dtype)
    assert_golden(objective, inputs, [-1.133, 0.8888200204, 0.196], [0.0, 0.0740683350, 0.0])
    assert objective(inputs).metrics["clipped"].tolist() == [1.0, 0.0, 1.0]


def test_completions_of_one_token_are_group_relative(of_rho, tensors, gradients):
    rho = [0.5, -0.3, 0.1, -0.05, 0.6, -0.4]
    inputs = tensors(of_rho(rho, score=[1.0, 0.2, -0.5, 0.0, -1.0, 0.4], group=[0, 0, 0, 1, 1, 1]))
    wide = {"clip_low": 0.2, "clip_high": 0.3, "kl_beta": 0.1, "largest_ratio": 1.7}
    ours = gradients(GSPO(**wide), inputs)
    theirs = gradients(
        GroupRelative(clip=0.2, clip_high=0.3, kl_beta=0.1, largest_ratio=1.7), inputs
    )
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_only_the_mean_log_ratio_counts(random_rows, tensors, gradients):
    rows = random_rows(0)
    inputs = tensors(rows)
    even = []
    for row in rows:
        n = len(row["policy"])
        mean = (sum(row["policy"]) - sum(row["previous"])) / n
        even.append({**row, "policy": [old + mean for old in row["previous"]]})
    objective = GSPO(clip_low=0.5, clip_high=0.5)
    for found, wanted in zip(
        gradients(objective, tensors(even)), gradients(objective, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    _, gradient = gradients(objective, inputs)
    for row, tokens in zip(gradient, inputs.policy.lengths().tolist(), strict=True):
        assert row[:tokens].tolist() == pytest.approx([row[0].item()] * tokens)


def test_the_largest_ratio_bounds_what_a_bad_completion_costs(of_rho, tensors, gradients):
    inputs = tensors(of_rho([1.0, 1.0], score=[1.0, -1.0]))
    loss, found = gradients(GSPO(scale="none", largest_ratio=2.0), inputs)
    assert loss.tolist() == pytest.approx([-1.0004, 2.0])
    assert not found.any()
    free, _ = gradients(GSPO(scale="none"), inputs)
    assert free[1].item() == pytest.approx(math.e)
