"""DAPO: golden rows, tokens of the step whatever the passes, GRPO at one length, both clips."""

import math
from dataclasses import replace

import pytest
import torch

from align.objectives import DAPO, GroupRelative


def test_golden(golden, tensors, assert_golden, dtype):
    # A = [1.1, -0.9, -0.2]; u = exp of [0.05, -0.05, 0.1], [-0.05, 0.1, -0.15, 0.05],
    # [-0.1, 0.1, -0.05, -0.05], within 0.92 .. 1.06: 1.1051709 stops where A > 0, 0.8607080 and
    # 0.9048374 where A < 0. Sums of what counts: 3.0625005209, 4.0276714390, 3.9276297671;
    # mean tokens 11 / 3: L = -A 3 / 11 of these, dL/dlogp = -A u / 11, and 0 where stopped
    u = [math.exp(x) for x in (0.05, -0.05, 0.1, -0.15, -0.1)]
    assert_golden(
        DAPO(scale="none", clip_low=0.08, clip_high=0.06),
        tensors(golden(0, 1, 2), dtype),
        [-0.9187501563, 0.9886102623, 0.2142343509],
        [
            [-0.1 * u[0], -0.1 * u[1], 0.0],
            [0.9 / 11 * u[1], 0.9 / 11 * u[2], 0.0, 0.9 / 11 * u[0]],
            [0.0, 0.2 / 11 * u[2], 0.2 / 11 * u[1], 0.2 / 11 * u[1]],
        ],
    )


def test_the_mean_over_completions_is_the_mean_over_tokens(random_rows, tensors):
    rows = random_rows(1)
    inputs = tensors([{**row, "previous": row["policy"]} for row in rows])
    found = DAPO()(inputs)
    lengths = inputs.policy.lengths()
    wanted = -(found.metrics["advantage"] * lengths).sum() / lengths.sum()
    assert found.loss.mean().item() == pytest.approx(wanted.item(), abs=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_completions_of_one_length_are_group_relative(beta, random_rows, tensors, gradients):
    rows = random_rows(0)
    cut = ("policy", "previous", "reference", "guide")
    rows = [{**row, **{role: (row[role] * 3)[:3] for role in cut}} for row in rows]
    ours = gradients(DAPO(kl_beta=beta), tensors(rows))
    grpo = gradients(GroupRelative(clip=0.2, clip_high=0.28, kl_beta=beta), tensors(rows))
    for found, wanted in zip(ours, grpo, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
        assert found.any()


def test_a_step_in_parts_is_the_step(random_rows, tensors):
    objective, rows = DAPO(), random_rows(2)
    whole = tensors(rows)
    given, carried = objective.couple(objective.measured(whole), {})
    assert carried == {}
    mean = sum(len(r["policy"]) for r in rows) / len(rows)
    assert given[:, 0].tolist() == pytest.approx([mean] * len(rows))
    found = [
        objective(replace(tensors(rows[part]), coupling=given[part])).loss
        for part in (slice(0, 4), slice(4, 6), slice(6, 10))
    ]
    torch.testing.assert_close(torch.cat(found), objective(whole).loss, rtol=0, atol=1e-14)
    assert not torch.allclose(objective(tensors(rows[:4])).loss, found[0])


def test_there_is_more_room_upwards_than_downwards(of_rho, tensors, gradients):
    # u = e^0.24 = 1.27 and e^0.26 = 1.30 with A > 0, e^-0.21 = 0.81 and e^-0.24 = 0.79 with A < 0
    inputs = tensors(of_rho([0.24, 0.26, -0.21, -0.24], score=[1.0, 1.0, -1.0, -1.0]))
    _, found = gradients(DAPO(scale="none"), inputs)
    wanted = [-math.exp(0.24), 0.0, math.exp(-0.21), 0.0]
    assert (4 * found[:, 0]).tolist() == pytest.approx(wanted)
    assert DAPO()(inputs).metrics["clipped"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_the_largest_ratio_bounds_what_a_bad_completion_costs(of_rho, tensors, gradients):
    inputs = tensors(of_rho([3.0, 3.0], score=[1.0, -1.0]))
    free, _ = gradients(DAPO(scale="none"), inputs)
    loss, found = gradients(DAPO(scale="none", largest_ratio=2.0), inputs)
    assert free.tolist() == pytest.approx([-1.28, math.exp(3.0)])
    assert loss.tolist() == pytest.approx([-1.28, 2.0])
    assert not found.any()


def test_needs_hang_on_the_kl_term():
    assert DAPO().needs == {"previous", "score"}
    assert DAPO(kl_beta=0.1).needs == {"previous", "score", "reference"}
