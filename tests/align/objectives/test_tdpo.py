"""TDPO: golden rows of both forms, what has gradient, and DPO where nothing diverges."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from align.errors import RecipeError
from align.objectives import DPO, TDPO, objective_from
from align.types import Logps, Pair, PairInputs

# Sums in nats: chosen [0.4, 0.9], rejected [1.0, 0.3]; 7 stands where the mask is False.
DIVERGENCE = {
    "chosen": [[0.1, 0.2, 0.1, 7], [0.3, 0.2, 0.3, 0.1]],
    "rejected": [[0.4, 0.1, 0.3, 0.2], [0.2, 0.1, 7, 7]],
}


def far(inputs: PairInputs, values: dict[str, list[list[float]]] = DIVERGENCE) -> PairInputs:
    def side(name: str, logps: Logps) -> Logps:
        return replace(logps, divergence=torch.tensor(values[name], dtype=logps.token.dtype))

    policy = inputs.policy
    sides = Pair(side("chosen", policy.chosen), side("rejected", policy.rejected))
    return replace(inputs, policy=sides)


def of_divergences(objective: TDPO, inputs: PairInputs) -> Pair[Tensor]:
    """[B, T] each: the gradient of the mean loss."""
    policy = inputs.policy
    leaves = [
        torch.nan_to_num(side.divergence).detach().requires_grad_()
        for side in (policy.chosen, policy.rejected)
        if side.divergence is not None
    ]
    sides = Pair(
        replace(policy.chosen, divergence=leaves[0]), replace(policy.rejected, divergence=leaves[1])
    )
    loss = objective(replace(inputs, policy=sides)).loss.mean()
    return Pair(*torch.autograd.grad(loss, leaves, materialize_grads=True))


def test_golden_tdpo1(golden, assert_golden, dtype):
    # m = 0.1 ([0.4, 0.8] - ([1.0, 0.3] - [0.4, 0.9])) = [-0.02, 0.14]
    # L = log(1 + e^-m); dL/dlogp_chosen = -0.1 sigmoid(-m) / 2
    assert_golden(
        TDPO(form="tdpo1"),
        far(golden(dtype)),
        0.6643961810,
        [0.7031971797, 0.6255951823],
        [-0.0252499917, -0.0232528527],
        [0.0252499917, 0.0232528527],
    )


def test_golden_tdpo2(golden, assert_golden, dtype):
    # m = 0.1 ([0.4, 0.8] - 0.5 [0.6, -0.6]) = [0.01, 0.11]
    assert_golden(
        TDPO(),
        far(golden(dtype)),
        0.6639092996,
        [0.6881596805, 0.6396589186],
        [-0.024875001, -0.0236263848],
        [0.024875001, 0.0236263848],
    )


@pytest.mark.parametrize(
    ("form", "mean", "per_pair", "chosen"),
    [
        # 0.8 log(1 + e^0.02) + 0.2 log(1 + e^-0.02), 0.3 log(1 + e^-0.14) + 0.7 log(1 + e^0.14)
        ("tdpo1", 0.711396181, [0.6991971797, 0.7235951823], [-0.0152499917, 0.0117471473]),
        ("tdpo2", 0.7034092996, [0.6901596805, 0.7166589186], [-0.014875001, 0.0113736152]),
    ],
)
def test_golden_soft(golden, assert_golden, form, mean, per_pair, chosen):
    p = torch.tensor([0.8, 0.3], dtype=torch.float64)
    inputs = far(golden(preference=p))
    assert_golden(TDPO(form=form), inputs, mean, per_pair, chosen, [-g for g in chosen])


@pytest.mark.parametrize(
    ("form", "p", "chosen", "rejected"),
    [
        # dL/dD_chosen = -0.1 sigmoid(-m) / 2 and dL/dD_rejected = -dL/dD_chosen
        ("tdpo1", None, [-0.0252499917, -0.0232528527], [0.0252499917, 0.0232528527]),
        # 0.1 (sigmoid(m) - p) / 2
        ("tdpo1", [0.8, 0.3], [-0.0152499917, 0.0117471473], [0.0152499917, -0.0117471473]),
        # 0.5 * 0.1 sigmoid(-m) / 2 on rejected alone
        ("tdpo2", None, [0.0, 0.0], [0.0124375005, 0.0118131924]),
        # the share p pushes rejected's divergence down, the share 1 - p chosen's
        ("tdpo2", [0.8, 0.3], [0.0025124999, 0.0092307653], [0.0099500004, 0.0035439577]),
    ],
)
def test_which_divergence_is_pushed(golden, form, p, chosen, rejected):
    preference = None if p is None else torch.tensor(p, dtype=torch.float64)
    inputs = far(golden(preference=preference))
    found = of_divergences(TDPO(form=form), inputs)
    for gradient, wanted, side in (
        (found.chosen, chosen, inputs.policy.chosen),
        (found.rejected, rejected, inputs.policy.rejected),
    ):
        each = torch.tensor(wanted, dtype=torch.float64)[:, None] * side.mask
        torch.testing.assert_close(gradient, each, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", [TDPO(form="tdpo1", beta=0.3), TDPO(beta=0.3, alpha=2.0)])
@pytest.mark.parametrize("p", [None, [0.8, 0.3]])
def test_where_nothing_diverges_it_is_dpo(golden, gradients, objective, p):
    preference = None if p is None else torch.tensor(p, dtype=torch.float64)
    none = {side: torch.zeros(2, 4).tolist() for side in DIVERGENCE}
    inputs = far(golden(preference=preference), none)
    found, wanted = gradients(objective, inputs), gradients(DPO(beta=0.3), inputs)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(found[1].chosen, wanted[1].chosen, rtol=0, atol=1e-15)


def test_with_alpha_0_it_is_dpo_whatever_diverges(golden):
    inputs = far(golden())
    assert torch.equal(TDPO(alpha=0)(inputs).loss, DPO()(inputs).loss)
    assert torch.equal(TDPO(alpha=0)(inputs).reward.chosen, DPO()(inputs).reward.chosen)


@pytest.mark.parametrize("form", ["tdpo1", "tdpo2"])
def test_a_pair_the_other_way_round_is_the_same_with_the_other_preference(golden, form):
    p = torch.tensor([0.8, 0.3], dtype=torch.float64)
    inputs = far(golden(preference=p))

    def swapped(pair):
        return Pair(pair.rejected, pair.chosen)

    turned = PairInputs(
        policy=swapped(inputs.policy), reference=swapped(inputs.reference), preference=1 - p
    )
    objective = TDPO(form=form)
    torch.testing.assert_close(objective(turned).loss, objective(inputs).loss)
    ours, theirs = of_divergences(objective, inputs), of_divergences(objective, turned)
    torch.testing.assert_close(theirs.rejected, ours.chosen)
    torch.testing.assert_close(theirs.chosen, ours.rejected)


@pytest.mark.parametrize(
    ("form", "chosen", "rejected"),
    # 0.1 (rho + D), and 0.1 (rho + 0.5 D)
    [("tdpo1", [0.06, 0.14], [0.08, 0.0]), ("tdpo2", [0.04, 0.095], [0.03, -0.015])],
)
def test_the_rewards_difference_is_what_is_compared(golden, form, chosen, rejected):
    output = TDPO(form=form)(far(golden()))
    assert output.reward.chosen.tolist() == pytest.approx(chosen)
    assert output.reward.rejected.tolist() == pytest.approx(rejected)
    margin = output.reward.chosen - output.reward.rejected
    torch.testing.assert_close(torch.nn.functional.softplus(-margin), output.loss)
    assert output.metrics["divergence/chosen"].tolist() == pytest.approx([0.4, 0.9])
    assert output.metrics["divergence/rejected"].tolist() == pytest.approx([1.0, 0.3])


def test_an_alpha_that_nobody_reads_is_refused():
    with pytest.raises(RecipeError, match=r"`alpha` is 0\.3, but only `form: tdpo2` reads it"):
        objective_from({"name": "tdpo", "form": "tdpo1", "alpha": 0.3})


def test_log_probs_without_a_divergence_are_refused(golden):
    with pytest.raises(
        RecipeError, match=r"`tdpo` needs `divergence` .*Logps\(\.\.\., divergence="
    ):
        TDPO()(golden())
