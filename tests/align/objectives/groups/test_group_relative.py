"""GRPO and its kin: TRL 1.16's maths in numpy, the formula, baselines, clip, KL, no contrast."""

import math

import numpy as np
import pytest
import torch

from align.objectives import GroupRelative
from align.objectives.groups.tokens import ratio


def test_golden(golden, tensors, assert_golden, dtype):
    # scores 1.5, -0.5, 0.2: mean 0.4, A = [1.1, -0.9, -0.2], not scaled
    # u = exp of [0.05, -0.05, 0.1], [-0.05, 0.1, -0.15, 0.05], [-0.1, 0.1, -0.05, -0.05], within
    # 0.8 .. 1.2: L = -A mean u, dL/dlogp = -A u / T / 3; mean u = 1.0358904, 0.9920949, 0.9781168
    rows = golden(0, 1, 2)
    u = [np.exp(np.array(r["policy"]) - np.array(r["previous"])) for r in rows]
    advantage = [1.1, -0.9, -0.2]
    assert u[0].tolist() == pytest.approx([1.0512711, 0.9512294, 1.1051709])
    losses = [-a * x.mean() for a, x in zip(advantage, u, strict=True)]
    assert losses == pytest.approx([-1.1394796, 0.8928854, 0.1956234], abs=1e-6)
    assert_golden(
        GroupRelative(scale="none"),
        tensors(rows, dtype),
        losses,
        [(-a * x / len(x) / 3).tolist() for a, x in zip(advantage, u, strict=True)],
    )


def trl(rows, by_group, *, scaled: bool, divisor: float | None, clip: float, beta: float):
    """TRL 1.16's `grpo` (divisor None) and `dr_grpo` losses per completion."""
    losses = [0.0] * len(rows)
    for members in by_group(rows).values():
        rewards = np.array([rows[i]["score"] for i in members])
        std = rewards.std(ddof=1) if len(members) > 1 else 0.0
        for i in members:
            a = rows[i]["score"] - rewards.mean()
            if scaled:
                a /= std + 1e-4
            new, old, ref = (np.array(rows[i][k]) for k in ("policy", "previous", "reference"))
            u = np.exp(new - old)
            per_token = -np.minimum(u * a, np.clip(u, 1 - clip, 1 + clip) * a)
            per_token = per_token + beta * (np.exp(ref - new) - (ref - new) - 1)
            losses[i] = float(per_token.sum() / (divisor or len(new)))
    return losses


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("scaled", "divisor"), [(True, None), (False, 256.0)])
def test_it_is_the_maths_of_trl(seed, beta, scaled, divisor, random_rows, by_group, assert_is):
    objective = GroupRelative(
        scale="sample_deviation" if scaled else "none", divisor=divisor, clip=0.3, kl_beta=beta
    )
    rows = random_rows(seed)

    def formula(rows):
        return trl(rows, by_group, scaled=scaled, divisor=divisor, clip=0.3, beta=beta)

    assert_is(objective, rows, formula)


def test_left_out_baselines_and_population_deviations(random_rows, by_group, tensors):
    rows = random_rows(2)
    for scale in ("none", "population_deviation"):
        objective = GroupRelative(baseline="leave_one_out", scale=scale)
        found = objective(tensors(rows)).metrics["advantage"].tolist()
        for members in by_group(rows).values():
            scores = np.array([rows[i]["score"] for i in members])
            for k, i in enumerate(members):
                others = np.delete(scores, k)
                wanted = scores[k] - others.mean() if len(others) else 0.0
                if scale != "none":
                    wanted /= scores.std() + 1e-4
                assert found[i] == pytest.approx(wanted, abs=1e-12)


def test_the_clip_stops_what_goes_further_and_nothing_else(of_rho, tensors, gradients):
    # u = e^0.5 > 1.2 and e^-0.5 < 0.8, each once with A > 0 and once with A < 0
    inputs = tensors(of_rho([0.5, 0.5, -0.5, -0.5], score=[1.0, -1.0, 1.0, -1.0]))
    objective = GroupRelative(scale="none")
    _, found = gradients(objective, inputs)
    u = math.exp(0.5)
    assert (4 * found[:, 0]).tolist() == pytest.approx([0.0, u, -1 / u, 0.0])
    assert objective(inputs).metrics["clipped"].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_constant_of_the_prompt_changes_nothing_nor_does_a_unit(random_rows, tensors):
    rows = random_rows(3)
    shifted = [{**r, "score": r["score"] + 3.0 * r["group"] - 2.0} for r in rows]
    for scale in ("none", "sample_deviation", "population_deviation"):
        found, wanted = (
            GroupRelative(scale=scale)(tensors(given)).loss for given in (shifted, rows)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    other = [{**r, "score": 100 * r["score"]} for r in rows]
    found, wanted = (GroupRelative()(tensors(given)).loss for given in (other, rows))
    torch.testing.assert_close(found, wanted, rtol=3e-3, atol=0)  # 1e-4 beside the deviation


def test_equal_scores_move_nothing_though_their_mean_is_rounded(golden, tensors, gradients):
    inputs = tensors(golden(0, 1, 2, score=[0.1] * 3))
    assert inputs.score.sum() / 3 != inputs.score[0]
    loss, gradient = gradients(GroupRelative(), inputs)
    assert not loss.any()
    assert not gradient.any()
    assert GroupRelative()(inputs).metrics["compares"].tolist() == [0.0] * 3
    with_kl, gradient = gradients(GroupRelative(kl_beta=0.1), inputs)
    assert (with_kl > 0).all()
    assert gradient.any()


def test_needs_hang_on_the_kl_term():
    assert GroupRelative().needs == {"previous", "score"}
    assert GroupRelative(kl_beta=0.1).needs == {"previous", "score", "reference"}


def test_a_ratio_is_finite_and_keeps_its_gradient():
    logratio = torch.tensor([0.5, 30.0, -1e4], dtype=torch.float64, requires_grad=True)
    u = ratio(logratio)
    assert u.tolist() == pytest.approx([math.exp(0.5), math.exp(20.0), 0.0])
    (gradient,) = torch.autograd.grad(u.sum(), logratio)
    assert gradient.tolist() == pytest.approx(u.tolist())


def test_the_upper_clip_may_be_wider_and_a_largest_ratio_bounds_bad_completions(
    of_rho, tensors, gradients
):
    # u = e^0.3 = 1.35, beyond 1.2 and within 1.4, once with A > 0; e^-0.3 = 0.74 < 0.8 and
    # e^2 with A < 0
    inputs = tensors(of_rho([0.3, 0.3, -0.3, 2.0], score=[1.0, 1.0, -1.0, -1.0]))
    _, narrow = gradients(GroupRelative(scale="none"), inputs)
    assert (4 * narrow[:, 0]).tolist() == pytest.approx([0.0, 0.0, 0.0, math.exp(2.0)])
    loss, found = gradients(GroupRelative(scale="none", clip_high=0.4, largest_ratio=3.0), inputs)
    u = math.exp(0.3)
    assert loss.tolist() == pytest.approx([-u, -u, 0.8, 3.0])
    assert (4 * found[:, 0]).tolist() == pytest.approx([-u, -u, 0.0, 0.0])
