"""APO: golden rows of both inner losses, momentum 0, round 1, its closed form over rounds.

The fixture's reference stands for `earlier`: `previous` moved by [0.1, 0.6] on chosen and
[-0.15, -0.05] on rejected, a gap of [0.25, 0.65]; the policy's gap to `previous` is [0.15, 0.15].
"""

import pytest
import torch

from align.objectives import APO, DPO, SPO


@pytest.fixture
def moved(golden):
    def build(dtype=torch.float64, **fields):
        given = {"previous": ..., "earlier": golden(dtype).reference, "reference": None, **fields}
        return golden(dtype, **given)

    return build


def test_golden_dpo(moved, assert_golden, dtype):
    # h = 0.15 - 0.5 [0.25, 0.65] = [0.025, -0.175]; z = 0.5 h = [0.0125, -0.0875]
    # log(1 + exp(-z)) = [log(1 + 0.9875778005), log(1 + 1.0914422644)]
    # dL/dlogp_chosen = -0.5 sigmoid(-z) / 2 = -0.25 [0.4968750407, 0.5218610540]
    assert_golden(
        APO(beta=0.5, momentum=0.5, inner="dpo"),
        moved(dtype),
        0.7123853092,
        [0.6869167117, 0.7378539067],
        [-0.1242187602, -0.1304652635],
        [0.1242187602, 0.1304652635],
    )


def test_golden_dpo_soft(moved, assert_golden):
    # p = [0.75, 0.4]: softplus(-z) + (1-p) z = [0.6869167117 + 0.25 * 0.0125,
    #   0.7378539067 - 0.6 * 0.0875]; dL/dlogp_chosen = 0.5 (sigmoid(z) - p) / 2
    #   = 0.25 [0.5031249593 - 0.75, 0.4781389460 - 0.4]
    assert_golden(
        APO(beta=0.5, momentum=0.5, inner="dpo"),
        moved(preference=torch.tensor([0.75, 0.4], dtype=torch.float64)),
        0.6876978092,
        [0.6900417117, 0.6853539067],
        [-0.0617187602, 0.0195347365],
        [0.0617187602, -0.0195347365],
    )


def test_golden_sppo(moved, scores, assert_golden, dtype):
    # h - [0.7, 0.25]/0.5 = [0.025 - 1.4, -0.175 - 0.5] = [-1.375, -0.675]
    # squared [1.890625, 0.455625]; dL/dlogp_chosen = 2 [-1.375, -0.675] / 2
    assert_golden(
        APO(beta=0.5, momentum=0.5, inner="sppo"),
        moved(dtype, score=scores([0.9, 0.6], [0.2, 0.35], dtype)),
        1.173125,
        [1.890625, 0.455625],
        [-1.375, -0.675],
        [1.375, 0.675],
    )


def test_the_reward_is_beta_times_the_extrapolated_log_ratio(moved):
    # 0.5 ([0.1, -0.1] - 0.5 [0.1, 0.6]); 0.5 ([-0.05, -0.25] - 0.5 [-0.15, -0.05])
    reward = APO(beta=0.5, momentum=0.5)(moved()).reward
    assert reward.chosen.tolist() == pytest.approx([0.025, -0.2])
    assert reward.rejected.tolist() == pytest.approx([0.0125, -0.1125])


@pytest.mark.parametrize("p", [None, [0.9, 0.2]])
def test_without_momentum_it_is_dpo_against_previous(golden, moved, p):
    p = None if p is None else torch.tensor(p, dtype=torch.float64)
    dpo = DPO(beta=0.3)(golden(reference=golden(previous=...).previous, preference=p))
    found = APO(beta=0.3, momentum=0.0)(moved(preference=p))
    torch.testing.assert_close(found.loss, dpo.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reward.chosen, dpo.reward.chosen, rtol=0, atol=1e-12)


def test_without_momentum_the_inner_sppo_is_spo(moved, scores):
    inputs = moved(score=scores([0.9, 0.6], [0.2, 0.35]))
    found = APO(beta=0.25, momentum=0.0, inner="sppo")(inputs).loss
    torch.testing.assert_close(found, SPO(eta=4.0)(inputs).loss)


def test_in_round_1_momentum_does_nothing(moved):
    inputs = moved(earlier=moved().previous)
    with_it, without = APO(momentum=0.9)(inputs), APO(momentum=0.0)(inputs)
    assert torch.equal(with_it.loss, without.loss)


@pytest.mark.parametrize("inner", ["dpo", "sppo"])
def test_a_constant_of_the_prompt_in_the_roles_changes_nothing(moved, scores, inner):
    # so the normaliser of the extrapolated policy may be left out
    inputs = moved(score=scores([0.9, 0.6], [0.2, 0.35]))
    shifted = moved(score=inputs.score, previous=_shifted(inputs.previous, -0.7))
    apo = APO(inner=inner)
    torch.testing.assert_close(apo(shifted).loss, apo(inputs).loss, rtol=0, atol=1e-12)


def _shifted(pair, by):
    sides = []
    for side in (pair.chosen, pair.rejected):
        token = side.token.clone()
        token[:, 0] += by
        sides.append(type(side)(token, side.mask))
    return type(pair)(*sides)


def test_a_preference_with_the_inner_sppo_and_a_reward_as_win_rate_are_refused(moved, scores):
    rates = scores([0.9, 0.6], [0.2, 0.35])
    with pytest.raises(ValueError, match="`preference`"):
        APO(inner="sppo")(moved(score=rates, preference=torch.ones(2)))
    with pytest.raises(ValueError, match=r"Pair 0 .*win rate in \[0, 1\]"):
        APO(inner="sppo")(moved(score=scores()))


@pytest.mark.parametrize(("momentum", "total"), [(0.0, 3.0), (0.3, 3.69), (0.5, 4.25), (0.8, 5.24)])
def test_three_rounds_reach_the_closed_form(table_optimum, momentum, total):
    # On Bradley-Terry labels log pi_T = log pi_ref + S_T r / beta, S_T = sum (1-a^s)/(1-a);
    # a = 0.5: S_3 = 1 + 1.5 + 1.75 = 4.25
    reward = torch.tensor([0.3, -0.2, 0.1, -0.4], dtype=torch.float64)
    start = torch.tensor([0.3, -0.2, 0.8, 0.0], dtype=torch.float64).log_softmax(0)
    earlier = previous = start
    for _ in range(3):
        found = table_optimum(
            APO(beta=0.5, momentum=momentum),
            roles={"previous": previous, "earlier": earlier},
            preference=lambda first, second: torch.sigmoid(reward[first] - reward[second]),
        )
        earlier, previous = previous, found.log()
    wanted = (start + total * reward / 0.5).softmax(0)
    torch.testing.assert_close(previous.exp(), wanted, rtol=0, atol=1e-6)


def test_the_inner_sppo_steps_from_the_extrapolated_policy(table_optimum, scores):
    # pi = pi_hat exp(P / beta) / Z with log pi_hat = 1.5 previous - 0.5 earlier
    win_rate = torch.tensor([0.9, 0.3, 0.45, 0.75, 0.1], dtype=torch.float64)
    earlier = torch.tensor([0.3, -0.2, 0.8, 0.0, -0.5], dtype=torch.float64).log_softmax(0)
    previous = torch.tensor([-0.4, 0.9, 0.1, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    found = table_optimum(
        APO(beta=0.5, momentum=0.5, inner="sppo"),
        roles={"previous": previous, "earlier": earlier},
        score=lambda first, second: scores(win_rate[first].tolist(), win_rate[second].tolist()),
    )
    wanted = (1.5 * previous - 0.5 * earlier + win_rate / 0.5).softmax(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
