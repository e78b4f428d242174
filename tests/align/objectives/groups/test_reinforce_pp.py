"""REINFORCE++: golden rows, OpenRLHF's maths in numpy, even advantages, parts of a step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from align.objectives import ReinforcePP


def test_golden(golden, tensors, assert_golden, dtype):
    # log previous - log reference [0.05, -0.15, 0.2] and [0.15, -0.2]; rewards -0.1 of that, and
    # the score 1.5 or 0.7 at the end: returns [1.49, 1.495, 1.48], [0.705, 0.72]; mean
    # 5.89 / 5 = 1.178, variance (0.312^2 + 0.317^2 + 0.302^2 + 0.473^2 + 0.458^2) / 5 = 0.144506
    # u = exp of [0.05, -0.05, 0.1] and [0.05, -0.3]: the last stops at 0.8, A < 0; mean tokens 2.5
    deviation = math.sqrt(0.144506)
    a = [[0.312 / deviation, 0.317 / deviation, 0.302 / deviation]]
    a += [[-0.473 / deviation, -0.458 / deviation]]
    assert a[0] == pytest.approx([0.8207514415, 0.8339045095, 0.7944453056], abs=1e-9)
    u = [[math.exp(x) for x in (0.05, -0.05, 0.1)], [math.exp(0.05), 0.8]]
    losses = [
        -sum(x * y for x, y in zip(*row, strict=True)) / 2.5 for row in zip(a, u, strict=True)
    ]
    gradients = [[-x * y / 5 for x, y in zip(*row, strict=True)] for row in zip(a, u, strict=True)]
    gradients[1][1] = 0.0
    assert_golden(
        ReinforcePP(baseline="none", kl_beta=0.1),
        tensors(golden(0, 3), dtype),
        losses,
        gradients,
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("baseline", ["group_mean", "none"])
def test_it_is_the_maths_of_openrlhf(seed, baseline, random_rows, by_group, assert_is):
    rows = random_rows(seed)
    score = [row["score"] for row in rows]
    if baseline == "group_mean":
        for members in by_group(rows).values():
            mean = np.mean([rows[i]["score"] for i in members])
            for i in members:
                score[i] -= mean
    returns = []
    for row, last in zip(rows, score, strict=True):
        reward = -0.3 * (np.array(row["previous"]) - np.array(row["reference"]))
        reward[-1] += last
        returns.append(np.cumsum(reward[::-1])[::-1])
    every = np.concatenate(returns)
    advantages = [(one - every.mean()) / np.sqrt(max(every.var(), 1e-8)) for one in returns]
    tokens = len(every)

    def formula(rows):
        losses = []
        for row, a in zip(rows, advantages, strict=True):
            u = np.exp(np.array(row["policy"]) - np.array(row["previous"]))
            gain = np.minimum(u * a, np.clip(u, 0.9, 1.3) * a)
            losses.append(-gain.sum() / tokens * len(rows))
        return losses

    objective = ReinforcePP(baseline=baseline, kl_beta=0.3, clip_low=0.1, clip_high=0.3)
    assert_is(objective, rows, formula)


def test_advantages_of_the_steps_tokens_have_mean_0_and_deviation_1(random_rows, tensors):
    inputs = tensors(random_rows(2))
    objective = ReinforcePP(kl_beta=0.5)
    given, _ = objective.couple(objective.measured(inputs), {})
    checked = replace(objective.checked(inputs), coupling=given)
    advantage = (objective.returns(checked) - given[:, 1:2]) / given[:, 2:]
    of_tokens = advantage[inputs.policy.mask]
    assert of_tokens.mean().item() == pytest.approx(0.0, abs=1e-13)
    assert of_tokens.std(correction=0).item() == pytest.approx(1.0, abs=1e-13)


def test_neither_a_constant_nor_a_unit_of_the_scores_counts(random_rows, tensors):
    rows = random_rows(3)
    objective = ReinforcePP(baseline="none", kl_beta=0.0)
    wanted = objective(tensors(rows)).loss
    other = objective(tensors([{**r, "score": 1e3 + 7 * r["score"]} for r in rows])).loss
    torch.testing.assert_close(other, wanted, rtol=0, atol=1e-11)
    # in float32 too, where squares of 1e3 would lose the scores' differences
    found = objective(
        tensors([{**r, "score": 1e3 + 7 * r["score"]} for r in rows], torch.float32)
    ).loss
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-3)


def test_a_step_in_parts_is_the_step(random_rows, tensors):
    objective, rows = ReinforcePP(), random_rows(2)
    whole = tensors(rows)
    given, carried = objective.couple(objective.measured(whole), {})
    assert carried == {}
    found = [
        objective(replace(tensors(rows[part]), coupling=given[part])).loss
        for part in (slice(0, 4), slice(4, 6), slice(6, 10))
    ]
    torch.testing.assert_close(torch.cat(found), objective(whole).loss, rtol=0, atol=1e-14)
    assert not torch.allclose(objective(tensors(rows[:4])).loss, found[0])


def test_returns_that_are_all_the_same_move_nothing(golden, tensors, gradients):
    rows = golden(0, 1, 2, score=[0.5] * 3)
    loss, found = gradients(ReinforcePP(kl_beta=0.0), tensors(rows))
    assert not loss.any()
    assert not found.any()


def test_needs_hang_on_the_kl_term():
    assert ReinforcePP().needs == {"previous", "score", "reference"}
    assert ReinforcePP(kl_beta=0.0).needs == {"previous", "score"}
