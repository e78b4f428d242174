"""BCO of single completions: golden rows, the pair form, the running mean over unequal steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.objectives import BCO, BCOUnpaired
from align.types import Logps, Pair, PairInputs


def test_golden(golden, tensors, assert_golden, dtype):
    # r = 0.5 [0.2, -0.2, 0.5, -0.3] = [0.1, -0.1, 0.25, -0.15], delta = 0.025:
    # softplus(-0.075), softplus(-0.125), softplus(-0.225), softplus(-0.175)
    # dL/dlogp = -+ 0.5 sigmoid(-0.075, ...) / 4
    assert_golden(
        BCOUnpaired(beta=0.5),
        tensors(golden(0, 1, 2, 3), dtype),
        [0.6563501408, 0.6325990353, 0.586962002, 0.6094704307],
        [-0.060157348, 0.0585988283, -0.0554982637, 0.0570451641],
    )


def test_both_sides_of_pairs_are_the_pair_form(golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    for shift in ("running_mean", "zero"):
        single = BCOUnpaired(beta=0.5, shift=shift)(inputs)
        pair = BCO(beta=0.5, shift=shift)(pairs)
        torch.testing.assert_close(single.loss[0::2] + single.loss[1::2], pair.loss)
        torch.testing.assert_close(single.reward[0::2], pair.reward.chosen)


@pytest.mark.parametrize("shift", ["running_mean", "zero"])
def test_the_shift_is_a_constant(shift, random_rows, assert_is):
    rows = random_rows(1)
    at_hand = [0.7 * (sum(r["policy"]) - sum(r["reference"])) for r in rows]
    delta = float(np.mean(at_hand)) if shift == "running_mean" else 0.0

    def formula(rows):
        rewards = [0.7 * (sum(r["policy"]) - sum(r["reference"])) - delta for r in rows]
        return [
            np.log1p(np.exp(-x if r["label"] else x)) for x, r in zip(rewards, rows, strict=True)
        ]

    assert_is(BCOUnpaired(beta=0.7, shift=shift), rows, formula)


def test_the_mean_runs_over_completions_not_over_steps():
    objective = BCOUnpaired()
    first, carried = objective.couple(torch.tensor([[1.0], [3.0]]), {})
    assert first.tolist() == [[2.0], [2.0]]
    second, carried = objective.couple(torch.tensor([[8.0]]), carried)
    assert second.tolist() == [[4.0]]  # (1 + 3 + 8) / 3; the steps' means have the mean 5
    assert carried == {"total": 12.0, "count": 3.0}
    assert objective.couple_held_out(torch.zeros(2, 1), carried).tolist() == [[4.0], [4.0]]
    assert objective.couple_held_out(torch.zeros(1, 1), {}).tolist() == [[0.0]]


def test_a_step_in_parts_is_the_step(random_rows, tensors):
    objective, rows = BCOUnpaired(beta=0.5), random_rows(3)
    whole = tensors(rows)
    given, _ = objective.couple(objective.measured(whole), {"total": 3.0, "count": 2.0})
    found = [
        objective(replace(tensors(rows[part]), coupling=given[part])).loss
        for part in (slice(0, 4), slice(4, 10))
    ]
    joint = objective(replace(whole, coupling=given)).loss
    torch.testing.assert_close(torch.cat(found), joint, rtol=0, atol=1e-14)
    assert not torch.allclose(joint, objective(whole).loss)


def test_without_a_shift_nothing_is_asked_of_the_step(golden, tensors):
    assert BCOUnpaired().couples
    assert not BCOUnpaired(shift="zero").couples
    inputs = tensors(golden(0, 1))
    far = replace(inputs, coupling=torch.full((2, 1), 9.0))
    assert BCOUnpaired(shift="zero")(far).metrics["shift"].tolist() == [0.0, 0.0]
    assert BCOUnpaired()(far).metrics["shift"].tolist() == [9.0, 9.0]
