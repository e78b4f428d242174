"""TRPA: golden rows of both forms and of the trust term, DPO on means, the formula in numpy."""

import numpy as np
import pytest
import torch

from align.objectives import DPO, TRPA
from align.types import Logps, Pair, PairInputs

# Mean log-probs of the policy [-0.80, -0.95, -1.10, -0.70], of the reference [-0.85, -0.90, -1.00,
# -0.75], levels [1, 3, 4, 3]: as completions of one token whose scores are minus the level.
DELTA = [0.05, -0.05, -0.1, 0.05]
LEVELS = {"score": [-1.0, -3.0, -4.0, -3.0]}


@pytest.mark.parametrize(
    ("form", "loss", "gradient"),
    [
        # pairs (0,1) (0,2) (0,3) of level 1, times 2.5, and (1,2) (3,2): differences 0.1, 0.15, 0,
        # 0.05, 0.15; h = [0.025, 0.0375, 0, 0.005, 0.015]; the mean of softplus(-h) over 5
        ("pair", 0.6849542093, [-0.0742188212, 0.0147125162, 0.0444313064, 0.0150749986]),
        # h = 0.1 [0.125 + 0.05, 0.125 + 0.1, 0.125 - 0.05, 0.05, 0.15]
        ("response", 0.6864251489, [-0.0744062679, -0.0000624978, 0.0297875062, 0.0000374988]),
    ],
)
def test_golden(form, loss, gradient, of_rho, tensors, assert_golden, dtype):
    objective = TRPA(beta=0.1, top_score=-1.0, trust_weight=0.0, form=form)
    assert_golden(objective, tensors(of_rho(DELTA, **LEVELS), dtype), [loss] * 4, gradient)


def test_golden_trust_term(golden, tensors, assert_golden, dtype):
    # previous - policy = [-0.05, 0.05, -0.1]: k3 = [0.0012294245, 0.0012710964, 0.004837418], mean
    # 0.0024459796; d k3 / dlp = (1 - exp(previous - policy)) / 3. One completion has no pair.
    assert_golden(
        TRPA(trust_weight=1.0),
        tensors(golden(0), dtype),
        [0.0024459796],
        [[0.0162568585, -0.0170903655, 0.0317208607]],
    )


@pytest.mark.parametrize("form", ["pair", "response"])
def test_it_is_the_formula_in_numpy(form, random_rows, by_group, assert_is):
    rows = random_rows(0, scores=[1.0, 0.0, 0.5, 1.0, 0.5, 0.5])

    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            delta = {i: np.mean(rows[i]["policy"]) - np.mean(rows[i]["reference"]) for i in members}
            factor = {i: 2.3 if rows[i]["score"] >= 1.0 else 1.0 for i in members}
            found, terms = [], []
            for i in members:
                for new, old in zip(rows[i]["policy"], rows[i]["previous"], strict=True):
                    terms.append(min(np.exp(old - new) - (old - new) - 1, 10.0))
                for j in members:
                    if rows[i]["score"] > rows[j]["score"]:
                        h = factor[i] * (delta[i] - delta[j])
                        if form == "response":
                            h = factor[i] * delta[i] - factor[j] * delta[j]
                        found.append(np.log1p(np.exp(-0.7 * h)))
            loss = (np.mean(found) if found else 0.0) + 0.2 * np.mean(terms)
            for i in members:
                losses[i] = float(loss)
        return losses

    assert_is(TRPA(beta=0.7, anisotropy=2.3, trust_weight=0.2, form=form), rows, formula)


def test_one_pair_without_anisotropy_is_dpo_on_means(golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3, group=[0, 0, 1, 1], score=[2.0, 1.0, 2.0, 1.0]))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    found = TRPA(beta=0.5, anisotropy=1.0, trust_weight=0.0)(inputs).loss
    torch.testing.assert_close(found[0::2], DPO(beta=0.5, length_normalised=True)(pairs).loss)


def test_level_1_is_absolute(of_rho, tensors):
    """A group of wrong answers has an order and no anisotropy."""

    def loss(scores: list[float], **fields: float) -> float:
        inputs = tensors(of_rho([0.4, -0.3], score=scores))
        return TRPA(trust_weight=0.0, **fields)(inputs).loss[0].item()

    assert loss([0.5, 0.0]) == loss([0.5, 0.0], anisotropy=1.0) != loss([1.0, 0.0])
    assert loss([0.5, 0.0], top_score=0.5) == loss([1.0, 0.0])


def test_the_trust_term_is_0_at_previous_and_ends_at_10(golden, tensors, gradients):
    rows = golden(0, 1, score=[1.0, 1.0])
    at = [{**row, "previous": row["policy"]} for row in rows]
    loss, gradient = gradients(TRPA(trust_weight=1.0), tensors(at))
    assert loss.tolist() == [0.0, 0.0]
    assert not gradient.any()
    away = [{**row, "previous": [x + 3.0 for x in row["policy"]]} for row in rows]  # e^3 - 4 > 10
    loss, gradient = gradients(TRPA(trust_weight=1.0), tensors(away))
    assert loss.tolist() == pytest.approx([10.0, 10.0])
    assert not gradient.any()


def test_needs_hang_on_the_trust_weight():
    assert TRPA().needs == {"reference", "previous", "score"}
    assert TRPA(trust_weight=0.0).needs == {"reference", "score"}
