"""OPA-DPO: goldens, what it is with weights of 1, signs of the anchor, and the mean over places.

The golden pairs have rho_chosen = [0.2, 0.5], rho_rejected = [-0.2, -0.3], h = [0.4, 0.8].
"""

import math
from dataclasses import replace

import pytest
import torch

from align.errors import DataError
from align.objectives import DPO, objective_from
from align.objectives.opa_dpo import OPADPO
from align.types import Logps, Pair, PairInputs

LOG2 = math.log(2)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def kinds(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def at_reference(chosen: int = 3, rejected: int = 5) -> PairInputs:
    """Four rows, one of each kind, policy = reference."""

    def side(width: int) -> Logps:
        token = -torch.rand(4, width, dtype=torch.float64).requires_grad_()
        return Logps(token, torch.ones(4, width, dtype=torch.bool))

    policy = Pair(side(chosen), side(rejected))
    frozen = Pair(policy.chosen.detached(), policy.rejected.detached())
    return PairInputs(policy=policy, reference=frozen, pair_kind=kinds(0, 1, 2, 3))


def test_golden_of_the_paper(golden) -> None:
    objective = OPADPO(beta=0.5, image_weight=0.2, anchor_margin=0.1)
    inputs = golden(pair_kind=kinds(0, 2))
    loss = objective(inputs).loss
    # Pair 0: m = 0.5 * 0.4 = 0.2, anchor at 0.5 * 0.2 - 0.1 = 0. Pair 1: m = 0.4, no anchor.
    expected = [softplus(-0.2) + LOG2, 0.2 * softplus(-0.4)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("anchor", "of_truth", "of_revision"),
    [
        # a at beta rho = 0.1 and 0.25: held up, not at all, or twice and down.
        ("paper", softplus(-0.1), softplus(-0.25)),
        ("gt_only", softplus(-0.1), 0.0),
        ("none", 0.0, 0.0),
        ("code", 2 * softplus(-0.1), 2 * softplus(0.25)),
    ],
)
def test_golden_of_each_anchor(golden, anchor: str, of_truth: float, of_revision: float) -> None:
    objective = OPADPO(beta=0.5, anchor=anchor, anchor_weight=3.0)
    loss = objective(golden(pair_kind=kinds(0, 1))).loss
    expected = [softplus(-0.2) + 3 * of_truth, softplus(-0.4) + 3 * of_revision]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_without_anchor_it_is_dpo_with_its_token_weights(golden, weights) -> None:
    weighed = weights([[1.0, 2.0, 0.5], [1.0, 1.0, 3.0, 1.0]], [[2.0, 1.0, 1.0, 0.0], [1.5, 2.5]])
    inputs = golden(token_weight=weighed)
    ours = OPADPO(beta=0.3, anchor="none")(replace(inputs, pair_kind=kinds(0, 1))).loss
    torch.testing.assert_close(ours, DPO(beta=0.3)(inputs).loss, rtol=0, atol=0)


@pytest.mark.parametrize(("anchor", "total"), [("paper", 4.4), ("code", 6.4), ("none", 2.4)])
@pytest.mark.parametrize("reduction", ["sequence", "position"])
def test_at_the_reference_every_term_is_log_2(anchor: str, total: float, reduction: str) -> None:
    # 1 + 1 + 0.2 + 0.2 pairs, and 2 anchors (4 as the program counts them).
    loss = OPADPO(anchor=anchor, reduction=reduction)(at_reference()).loss.detach().sum()
    assert float(loss) == pytest.approx(total * LOG2, abs=1e-12)


def test_the_anchor_of_the_program_pushes_the_revision_down() -> None:
    # Per token of the revision at the reference: contrast -beta/2, anchor 2 * (+beta/2) in the
    # program and -beta/2 in the paper.
    for anchor, expected in (("code", -0.5 + 1.0), ("paper", -0.5 - 0.5), ("gt_only", -0.5)):
        inputs = at_reference()
        loss = OPADPO(beta=1.0, anchor=anchor)(inputs).loss[1]
        (gradient,) = torch.autograd.grad(loss, [inputs.policy.chosen.token])
        assert gradient[1].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("anchor", ["paper", "code"])
def test_at_the_reference_both_reductions_ask_for_the_same_direction(anchor: str) -> None:
    for weight in (None, Pair(torch.full((4, 3), 2.0), torch.full((4, 5), 0.5))):
        found = []
        for reduction in ("sequence", "position"):
            torch.manual_seed(0)
            inputs = replace(at_reference(), token_weight=weight)
            objective = OPADPO(anchor=anchor, reduction=reduction, positions=64)
            tokens = [inputs.policy.chosen.token, inputs.policy.rejected.token]
            found.append(torch.autograd.grad(objective(inputs).loss.sum(), tokens))
        for summed, by_place in zip(*found, strict=True):
            torch.testing.assert_close(64 * by_place, summed)
            assert float(summed.abs().max()) > 0


def test_by_place_it_saturates_and_padding_counts_as_log_2(golden) -> None:
    objective = OPADPO(beta=0.5, anchor="none", reduction="position", positions=10)
    # Pair 0: rho by place [.1 -.2 .3] against [-.1 .2 -.4 .1]; the rest of 10 places is padding.
    places = [0.2, -0.4, 0.7, -0.1]
    expected = (sum(softplus(-0.5 * d) for d in places) + 6 * LOG2) / 10
    assert float(objective(golden(pair_kind=kinds(0, 0))).loss[0]) == pytest.approx(expected)


def test_a_longer_completion_than_the_places_is_refused(golden) -> None:
    with pytest.raises(DataError, match=r"4 tokens, and objective\.positions is 3"):
        OPADPO(reduction="position", positions=3)(golden(pair_kind=kinds(0, 1)))


@pytest.mark.parametrize("kind", [-1, 4])
def test_unknown_kinds_are_refused(golden, kind: int) -> None:
    with pytest.raises(DataError, match="gt_vs_gen, rev_vs_gen, gt_img, rev_img"):
        OPADPO()(golden(pair_kind=kinds(0, kind)))


def test_rows_without_kinds_are_refused(golden) -> None:
    with pytest.raises(DataError, match=r"needs `pair_kind`.*give every row pair_kind\."):
        objective_from({"name": "opa_dpo"})(golden())
