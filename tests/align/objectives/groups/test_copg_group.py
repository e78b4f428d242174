"""CoPG of groups: golden row, the pair form, leave-one-out, IPO's kin, shift and optimum."""

import numpy as np
import pytest
import torch

from align.objectives import CoPG, CoPGGroup
from align.types import GroupInputs, Logps, Pair, PairInputs


def test_golden(of_rho, tensors, assert_golden, dtype):
    # R_beta = [1, 0, 0.5, -1] - 0.1 rho = [0.97, 0.02, 0.49, -0.96]; squared differences
    # 0.9025 + 0.2304 + 3.7249 + 0.2209 + 0.9604 + 2.1025 = 8.1416, over 3
    # dL/drho = -0.2 (R_beta - mean of the others) = -0.2 (4 R_beta - 0.52) / 3
    assert_golden(
        CoPGGroup(beta=0.1),
        tensors(of_rho([0.3, -0.2, 0.1, -0.4], score=[1.0, 0.0, 0.5, -1.0]), dtype),
        [2.7138666667] * 4,
        [-0.224, 0.0293333333, -0.096, 0.2906666667],
    )


def test_it_is_the_formula_in_numpy(random_rows, by_group, assert_is):
    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            kept = [
                rows[i]["score"] - 0.3 * (sum(rows[i]["policy"]) - sum(rows[i]["reference"]))
                for i in members
            ]
            squares = [(kept[i] - kept[j]) ** 2 for i in range(len(kept)) for j in range(i)]
            for i in members:
                losses[i] = sum(squares) / max(len(kept) - 1, 1)
        return losses

    assert_is(CoPGGroup(beta=0.3), random_rows(0), formula)


def test_two_completions_are_the_pair_form_times_2_beta(golden, tensors, gradients):
    rows, beta = golden(0, 1, 2, 3, group=[0, 0, 1, 1]), 0.3
    inputs = tensors(rows)

    def sides(values):
        if isinstance(values, Logps):
            return Pair(*(Logps(values.token[i::2], values.mask[i::2]) for i in (0, 1)))
        return Pair(values[0::2], values[1::2])

    pairs = PairInputs(
        policy=sides(inputs.policy), reference=sides(inputs.reference), score=sides(inputs.score)
    )
    gain = pairs.score.chosen - pairs.score.rejected
    loss, gradient = gradients(CoPGGroup(beta=beta), inputs)
    wanted = 2 * beta * CoPG(beta=beta)(pairs).loss + gain**2
    torch.testing.assert_close(loss[0::2], wanted)
    h = (inputs.policy.total() - inputs.reference.total())[0::2] - (
        inputs.policy.total() - inputs.reference.total()
    )[1::2]
    # copg's own gradient is -(dR - beta h); here of a mean over two pairs
    torch.testing.assert_close(gradient[0::2, 0], 2 * beta * -(gain - beta * h) / 2)


def test_the_gradient_is_the_leave_one_out_advantage(random_rows, by_group, tensors, gradients):
    rows, beta = random_rows(1, sizes=(4, 3)), 0.2
    _, gradient = gradients(CoPGGroup(beta=beta), tensors(rows))
    kept = [r["score"] - beta * (sum(r["policy"]) - sum(r["reference"])) for r in rows]
    for members in by_group(rows).values():
        for i in members:
            others = np.mean([kept[j] for j in members if j != i])
            wanted = -2 * beta * (kept[i] - others) * len(members) / len(rows)
            assert gradient[i, 0].item() == pytest.approx(wanted, abs=1e-12)


def test_a_constant_of_the_prompt_changes_nothing(random_rows, tensors):
    rows = random_rows(2)
    shifted = [{**r, "score": r["score"] + 5.0 * r["group"] - 2.0} for r in rows]
    found, wanted = (CoPGGroup()(tensors(given)).loss for given in (shifted, rows))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_tabular_optimum_of_the_papers_bandit():
    # R = (2.5, 2, 1), beta = 0.5, uniform reference: softmax(R / beta), whatever drew the samples
    reward = torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
    drawn = torch.tensor([0, 0, 0, 0, 1, 2])  # very uneven
    mask = torch.ones(6, 1, dtype=torch.bool)
    uniform = torch.full((6, 1), 1 / 3, dtype=torch.float64).log()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        inputs = GroupInputs(
            policy=Logps(logits.log_softmax(0)[drawn, None], mask),
            group=torch.zeros(6, dtype=torch.int64),
            reference=Logps(uniform, mask),
            score=reward[drawn],
        )
        loss = CoPGGroup(beta=0.5)(inputs).loss.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = logits.detach().softmax(0)
    torch.testing.assert_close(found, (reward / 0.5).softmax(0), rtol=0, atol=1e-6)
