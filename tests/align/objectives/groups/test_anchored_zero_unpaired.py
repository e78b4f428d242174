"""APO-zero of single completions: golden rows, the pair form, TRL 1.16's maths in numpy."""

import numpy as np
import pytest
import torch

from align.objectives import AnchoredZero, AnchoredZeroUnpaired
from align.types import Logps, Pair, PairInputs


def test_golden(golden, tensors, assert_golden, dtype):
    # r = 0.5 [0.2, -0.2, 0.5, -0.3] = [0.1, -0.1, 0.25, -0.15]; 1 - s(0.1), s(-0.1), 1 - s(0.25),
    # s(-0.15), with weights 2 and 3; dL/dlogp = -+ 0.5 w s (1 - s) / 4
    assert_golden(
        AnchoredZeroUnpaired(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0),
        tensors(golden(0, 1, 2, 3), dtype),
        [0.950041625, 1.4250624376, 0.8756469982, 1.387710464],
        [-0.06234401, 0.0935160151, -0.0615335207, 0.0932246275],
    )


def test_it_is_the_maths_of_trl_and_of_its_branches(random_rows, tensors, assert_is):
    rows = random_rows(0)

    def formula(rows):
        losses = []
        for r in rows:
            s = 1 / (1 + np.exp(-0.3 * (sum(r["policy"]) - sum(r["reference"]))))
            losses.append(1.5 * (1 - s) if r["label"] else 0.7 * s)
        return losses

    objective = AnchoredZeroUnpaired(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    assert_is(objective, rows, formula)
    rho = [sum(r["policy"]) - sum(r["reference"]) for r in rows]
    assert objective(tensors(rows)).reward.tolist() == pytest.approx([0.3 * x for x in rho])


def test_both_sides_of_pairs_are_the_pair_form(golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3))

    def sides(logps: Logps) -> Pair[Logps]:
        return Pair(*(Logps(logps.token[i::2], logps.mask[i::2]) for i in (0, 1)))

    pairs = PairInputs(policy=sides(inputs.policy), reference=sides(inputs.reference))
    single = AnchoredZeroUnpaired()(inputs).loss
    torch.testing.assert_close(single[0::2] + single[1::2], AnchoredZero()(pairs).loss)
