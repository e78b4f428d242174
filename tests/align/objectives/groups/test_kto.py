"""KTO: golden rows, both branches, TRL 1.16's maths in numpy, and the KL term of the step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.errors import DataError
from align.objectives import KTO


def test_golden(golden, tensors, assert_golden, dtype):
    # rho = [0.2, -0.2, 0.5, -0.3], mismatched [0.3, -0.1, 0.4, 0.2]: KL = 0.8 / 4 = 0.2
    # gap = rho - KL = [0, ., 0.3, .] for desirable ones, KL - rho = [., 0.4, ., 0.5] for others
    # loss = w s(-0.5 gap), s the sigmoid, w = 1 and 2: s(0), 2 s(-0.2), s(-0.15), 2 s(-0.25)
    # dL/drho = -0.5 w s (1 - s) / 4 of desirable ones, and plus that of others
    inputs = tensors(golden(0, 1, 2, 3, mismatched=[0.3, -0.1, 0.4, 0.2]), dtype)
    assert_golden(
        KTO(beta=0.5, undesirable_weight=2.0),
        inputs,
        [0.5, 0.9003320054, 0.4625701547, 0.8756469982],
        [-0.03125, 0.0618791432, -0.0310748758, 0.0615335207],
    )


def test_weights_are_of_their_branch(golden, tensors):
    inputs = tensors(golden(0, 1, 2, 3, mismatched=[0.0] * 4))
    plain = KTO()(inputs).loss
    weighed = KTO(desirable_weight=3.0, undesirable_weight=0.5)(inputs).loss
    torch.testing.assert_close(weighed, plain * torch.tensor([3.0, 0.5, 3.0, 0.5]))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_maths_of_trl(seed, random_rows, tensors):
    """TRL 1.16's `loss_type="kto"`, by branches, in its order: chosen before rejected."""
    rows, beta, d_weight, u_weight = random_rows(seed), 0.3, 1.5, 0.7
    rho = np.array([sum(r["policy"]) - sum(r["reference"]) for r in rows])
    desirable = np.array([r["label"] for r in rows])
    kl = max(0.0, float(np.mean([r["mismatched"] for r in rows])))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    chosen = d_weight * (1 - sigmoid(beta * (rho[desirable] - kl)))
    rejected = u_weight * (1 - sigmoid(beta * (kl - rho[~desirable])))
    objective = KTO(beta=beta, desirable_weight=d_weight, undesirable_weight=u_weight)
    output = objective(tensors(rows))
    assert output.loss[torch.tensor(desirable)].tolist() == pytest.approx(chosen.tolist())
    assert output.loss[torch.tensor(~desirable)].tolist() == pytest.approx(rejected.tolist())
    joined = np.concatenate([chosen, rejected]).mean()
    assert output.loss.mean().item() == pytest.approx(joined, abs=1e-12)
    assert output.reward.tolist() == pytest.approx((beta * rho).tolist())
    assert output.metrics["kl"].tolist() == pytest.approx([kl] * len(rows))


def test_the_gradient_takes_the_kl_term_as_it_is(random_rows, assert_is):
    rows = random_rows(2)
    kl = max(0.0, float(np.mean([r["mismatched"] for r in rows])))
    assert kl > 0

    def formula(rows):
        losses = []
        for r in rows:
            gap = sum(r["policy"]) - sum(r["reference"]) - kl
            losses.append(1 / (1 + np.exp(0.4 * (gap if r["label"] else -gap))))
        return losses

    assert_is(KTO(beta=0.4), rows, formula)


def test_a_negative_kl_estimate_is_none(golden, tensors):
    inputs = tensors(golden(0, 1, mismatched=[-3.0, 1.0]))
    assert KTO()(inputs).metrics["kl"].tolist() == [0.0, 0.0]
    without = replace(inputs, mismatched=torch.zeros(2, dtype=torch.float64))
    assert KTO()(inputs).loss.tolist() == KTO()(without).loss.tolist()


def test_the_kl_is_the_mean_of_the_step_not_of_a_pass(random_rows, tensors):
    objective, rows = KTO(beta=0.5), random_rows(3)
    whole = tensors(rows)
    given, carried = objective.couple(objective.measured(whole), {})
    assert carried == {}
    parts = [slice(0, 4), slice(4, 7), slice(7, 10)]
    found = [
        objective(replace(tensors(rows[part]), coupling=given[part], mismatched=None)).loss
        for part in parts
    ]
    torch.testing.assert_close(torch.cat(found), objective(whole).loss, rtol=0, atol=1e-14)
    alone = torch.cat([objective(tensors(rows[part])).loss for part in parts])
    assert not torch.allclose(alone, objective(whole).loss)


def test_without_mismatched_or_coupling_there_is_no_estimate(golden, tensors):
    with pytest.raises(DataError, match="needs `mismatched`"):
        KTO()(tensors(golden(0, 1)))
