"""P3O: golden rows of both forms, where the clip bites, shift and order, half of CoPG.

The golden pairs have d_chosen = [0.1, -0.1], d_rejected = [-0.05, -0.25] against `previous`, so the
ratios are q_chosen = [1.1051709181, 0.9048374180], q_rejected = [0.9512294245, 0.7788007831] and
their product exp([0.05, -0.35]) = [1.0512710964, 0.7046880897]. dR = [2, -0.5].
"""

import pytest
import torch

from align.objectives import P3O, CoPG
from align.types import Logps, Pair

FORMS = ["separate", "joint"]
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def sampled(golden, scores):
    def build(dtype=torch.float64, **fields):
        return golden(dtype, **{"previous": ..., "score": scores(dtype=dtype), **fields})

    return build


def test_golden_separate_clip_02(sampled, assert_golden, dtype):
    # pair 0: nothing is clipped; q_1 A sg[q_2] - q_2 A sg[q_1] = 0 in value
    # pair 1: q_chosen 0.905 is inside [0.8, 1.2]; q_rejected 0.779 is not, but A_2 = 0.45 > 0 and
    #   min(A_2 q_2, A_2 0.8) is the unclipped one
    # dL/dlogp_chosen = -dR q_1 q_2 / 2 / 2 = -[2.1025421928, -0.3523440449] / 4
    assert_golden(
        P3O(kl_beta=0.0, clip=0.2, form="separate"),
        sampled(dtype),
        0.0,
        [0.0, 0.0],
        [-0.5256355482, 0.0880860112],
        [0.5256355482, -0.0880860112],
    )


def test_golden_separate_clip_005(sampled, assert_golden, dtype):
    # pair 0: A_1 = 2 q_2 = 1.9024588490, q_1 is cut at 1.05: J_1 = 1.9975817915, no gradient;
    #   J_2 = -2 q_1 q_2 = -2.1025421928 (0.9512 > 0.95); L = -(J_1 + J_2)/2
    # pair 1: A_1 = -0.5 q_2 = -0.3894003915, q_1 is cut at 0.95: J_1 = -0.3699303720;
    #   J_2 = 0.5 q_1 q_2 = 0.3523440449 is less than at 0.95
    assert_golden(
        P3O(kl_beta=0.0, clip=0.05, form="separate"),
        sampled(dtype),
        0.0306366821,
        [0.0524802007, 0.0087931635],
        [0.0, 0.0],
        [0.5256355482, -0.0880860112],
    )


def test_golden_joint_clip_02(sampled, assert_golden, dtype):
    # A = dR q_1 q_2 / 2 = [1.0512710964, -0.1761720224]; x = [-2.6 + 4.6, -4.1 + 2.5] = [2, -1.6]
    # x0 = [1.85, -1.75], so x - x0 = 0.15 is inside; L = -A x
    assert_golden(
        P3O(kl_beta=0.0, clip=0.2, form="joint"),
        sampled(dtype),
        -1.1922087143,
        [-2.1025421928, -0.2818752359],
        [-0.5256355482, 0.0880860112],
        [0.5256355482, -0.0880860112],
    )


def test_golden_joint_clip_005(sampled, assert_golden, dtype):
    # x is cut at x0 + 0.05 = [1.9, -1.7]; pair 0: A 1.9 < A 2, no gradient; pair 1, A < 0: A x is
    # 0.2819 and A (-1.7) 0.2995, so the unclipped one is the least
    assert_golden(
        P3O(kl_beta=0.0, clip=0.05, form="joint"),
        sampled(dtype),
        -1.1396451595,
        [-1.9974150831, -0.2818752359],
        [0.0, 0.0880860112],
        [0.0, -0.0880860112],
    )


@pytest.mark.parametrize(
    ("form", "mean", "per_pair"),
    [("separate", 0.0, [0.0, 0.0]), ("joint", -1.1973897159, [-2.0762604153, -0.3185190166])],
)
def test_golden_with_the_kl_in_the_reward(sampled, assert_golden, form, mean, per_pair):
    # previous - reference: chosen [0.1, 0.6], rejected [-0.15, -0.05]
    # r_1 - r_2 = [2 - 0.1 * 0.25, -0.5 - 0.1 * 0.65] = [1.975, -0.565]
    # dL/dlogp_chosen = -[1.975, -0.565] [1.0512710964, 0.7046880897] / 4
    assert_golden(
        P3O(kl_beta=0.1, clip=0.2, form=form),
        sampled(),
        mean,
        per_pair,
        [-0.5190651038, 0.0995371927],
        [0.5190651038, -0.0995371927],
    )


@every_form
def test_golden_first_step(sampled, golden, gradients, form):
    # policy = previous, so q = 1: -(r_1 - r_2) / 2 / 2 = -[1.975, -0.565] / 4
    previous = golden(previous=...).previous
    _, grads = gradients(P3O(kl_beta=0.1, form=form), sampled(policy=previous))
    assert grads.chosen[:, 0].tolist() == pytest.approx([-0.49375, 0.14125], abs=1e-12)
    assert grads.rejected[:, 0].tolist() == pytest.approx([0.49375, -0.14125], abs=1e-12)


@every_form
def test_the_first_gradient_is_half_of_copgs(golden, sampled, gradients, form):
    inputs = sampled(policy=golden(previous=...).previous)
    _, p3o = gradients(P3O(kl_beta=0.3, form=form), inputs)
    _, copg = gradients(CoPG(beta=0.3), inputs)
    torch.testing.assert_close(p3o.chosen, copg.chosen / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(p3o.rejected, copg.rejected / 2, rtol=0, atol=1e-12)


@every_form
def test_with_todays_kl_it_is_half_of_copg_times_the_ratio(sampled, gradients, form):
    # A score from which beta rho is already taken off, and no clipping
    inputs, beta = sampled(), 0.3
    rho = [
        getattr(inputs.policy, side).total() - getattr(inputs.reference, side).total()
        for side in ("chosen", "rejected")
    ]
    score = Pair(inputs.score.chosen - beta * rho[0], inputs.score.rejected - beta * rho[1])
    _, p3o = gradients(P3O(kl_beta=0.0, clip=10.0, form=form), sampled(score=score))
    _, copg = gradients(CoPG(beta=beta), inputs)
    ratio = torch.tensor([0.05, -0.35], dtype=torch.float64).exp()
    torch.testing.assert_close(p3o.chosen, copg.chosen / 2 * ratio[:, None], rtol=0, atol=1e-12)


@every_form
@pytest.mark.parametrize("clip", [0.05, 0.2])
def test_a_constant_of_the_prompt_changes_nothing(sampled, scores, gradients, form, clip):
    p3o = P3O(clip=clip, form=form)
    loss, grads = gradients(p3o, sampled())
    shifted = sampled(score=scores([4.5, -0.8], [2.5, -0.3]))  # +3, -1
    same_loss, same_grads = gradients(p3o, shifted)
    torch.testing.assert_close(same_loss, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(same_grads.chosen, grads.chosen, rtol=0, atol=1e-12)
    torch.testing.assert_close(same_grads.rejected, grads.rejected, rtol=0, atol=1e-12)


@every_form
@pytest.mark.parametrize("clip", [0.05, 0.2])
def test_the_order_of_the_sides_does_not_matter(sampled, gradients, form, clip):
    inputs = sampled()
    roles = ("policy", "reference", "previous", "score")
    swapped = sampled(
        **{
            name: Pair(getattr(inputs, name).rejected, getattr(inputs, name).chosen)
            for name in roles
        }
    )
    loss, grads = gradients(P3O(clip=clip, form=form), inputs)
    same_loss, same_grads = gradients(P3O(clip=clip, form=form), swapped)
    torch.testing.assert_close(same_loss, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(same_grads.rejected, grads.chosen, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [0.3, -0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_joint_stops_only_what_goes_on_in_the_direction_of_the_advantage(
    golden, scores, gradients, gap, sign
):
    previous = golden(previous=...).previous
    moved = Pair(_plus(previous.chosen, gap), previous.rejected)  # x - x0 = gap, beyond clip 0.2
    inputs = golden(policy=moved, previous=previous, score=scores([sign, sign], [0, 0]))
    _, grads = gradients(P3O(kl_beta=0.0, clip=0.2, form="joint"), inputs)
    stopped = gap * sign > 0
    assert bool((grads.chosen == 0).all()) == stopped
    assert P3O(kl_beta=0.0, form="joint")(inputs).metrics["clipped"].tolist() == [stopped, stopped]


def test_the_share_of_stopped_terms(sampled):
    # as in the golden rows: separate stops chosen in both pairs, joint stops pair 0 only
    tight = {form: P3O(kl_beta=0.0, clip=0.05, form=form)(sampled()).metrics for form in FORMS}
    assert tight["separate"]["clipped"].tolist() == [0.5, 0.5]
    assert tight["joint"]["clipped"].tolist() == [1.0, 0.0]
    wide = {form: P3O(kl_beta=0.0, clip=0.5, form=form)(sampled()).metrics for form in FORMS}
    assert wide["separate"]["clipped"].tolist() == [0.0, 0.0]
    assert wide["joint"]["clipped"].tolist() == [0.0, 0.0]


@every_form
@pytest.mark.parametrize("clip", [0.05, 0.2])
def test_the_gradient_is_that_of_the_formula_with_frozen_copies(sampled, gradients, form, clip):
    """Central differences, the stop-gradient ratios held at the policy's own."""
    inputs = sampled()
    _, grads = gradients(P3O(kl_beta=0.0, clip=clip, form=form), inputs)
    d = torch.tensor([[0.1, -0.1], [-0.05, -0.25]], dtype=torch.float64)
    advantage, x0 = torch.tensor([2.0, -0.5]), torch.tensor([1.85, -1.75])

    def loss(first, second):
        def least(a, x, start):
            return torch.minimum(a * x, a * x.clamp(start - clip, start + clip))

        q = d.exp()
        if form == "joint":
            return -least(advantage * q[0] * q[1], x0 + first - second, x0) / 2
        one = torch.ones(2)
        return (
            -(
                least(advantage * q[1], first.exp(), one)
                + least(-advantage * q[0], second.exp(), one)
            )
            / 2
        )

    for side, step in ((grads.chosen, [1e-6, 0.0]), (grads.rejected, [0.0, 1e-6])):
        up, down = loss(d[0] + step[0], d[1] + step[1]), loss(d[0] - step[0], d[1] - step[1])
        numeric = (up - down) / 2e-6 / 2  # the mean over two pairs
        torch.testing.assert_close(side[:, 0], numeric, rtol=0, atol=1e-8)


@every_form
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_ratio_beyond_all_numbers_keeps_a_finite_pull(golden, scores, gradients, form, sign):
    """d = 10,000 nats on chosen: with sign -1 the pull back stays, with +1 the clip stops it."""
    previous = golden(torch.float32, previous=...).previous
    moved = Pair(_plus(previous.chosen, 1e4), previous.rejected)
    score = scores([sign, sign], [0, 0], torch.float32)
    inputs = golden(torch.float32, policy=moved, previous=previous, score=score)
    loss, grads = gradients(P3O(kl_beta=0.0, form=form), inputs)
    assert loss.isfinite().all()
    assert grads.chosen.isfinite().all()
    # e^20 / 2 per pair, / 2 for the mean
    wanted = 0.0 if sign > 0 else 485165195.4097903 / 4
    assert grads.chosen[:, 0].tolist() == pytest.approx([wanted] * 2, rel=1e-5)


def _plus(side, nats):
    token = side.token.clone()
    token[:, 0] += nats
    return Logps(token, side.mask)


def test_the_reward_is_the_log_ratio_to_previous(sampled):
    reward = P3O()(sampled()).reward
    assert reward.chosen.tolist() == pytest.approx([0.1, -0.1])
    assert reward.rejected.tolist() == pytest.approx([-0.05, -0.25])
