"""RTO: golden token rewards, the formula in plain Python, what the guide and the score come to."""

import math
from dataclasses import replace

import pytest
import torch

from align.objectives import RTO
from align.objectives.groups.tokens import is_last


def test_golden_token_rewards(golden, tensors, dtype):
    # 0.05 [0.3, -0.4, 0.2] - 0.01 [0.1, -0.2, 0.3] + [0, 0, 1.5] with the policy as `previous`
    rows = golden(0)
    rows[0]["previous"] = rows[0]["policy"]
    objective = RTO()
    inputs = objective.checked(tensors(rows, dtype))
    reward = objective.token_rewards(inputs)
    wanted = torch.tensor([[0.014, -0.018, 1.507]], dtype=dtype)
    torch.testing.assert_close(reward, wanted, rtol=1e-5, atol=1e-9)
    assert objective(inputs).metrics["return"].tolist() == pytest.approx([1.503], rel=1e-5)


def test_golden(golden, tensors, assert_golden):
    # Two completions of the golden rewards, the second with R = 0.5 and policy = previous in both:
    # returns 1.503 and 0.503; to go [1.503, 1.489, 1.507] and [0.503, 0.489, 0.507]
    # A of the first: to go - 0.503 = [1, 0.986, 1.004], of the second: to go - 1.503
    # u = 1: L = -mean A = -0.9966666667 and 1.0033333333; dL/dlogp = -A / 3 / 2
    rows = golden(0, 0, score=[1.5, 0.5])
    for row in rows:
        row["previous"] = row["policy"]
    assert_golden(
        RTO(),
        tensors(rows),
        [-0.9966666667, 1.0033333333],
        [
            [-1 / 6, -0.986 / 6, -1.004 / 6],
            [1 / 6, 1.014 / 6, 0.996 / 6],
        ],
    )


def test_it_is_the_formula_in_plain_python(random_rows, by_group, assert_is, tensors):
    rows, clip = random_rows(0), 0.3
    objective = RTO(guide_beta=0.4, guide_clip=0.1, kl_beta=0.2, score_clip=0.9, clip=clip)

    def rewards(row):
        found = []
        for t in range(len(row["policy"])):
            guide = 0.4 * (row["guide"][t] - row["reference"][t])
            kl = row["previous"][t] - row["reference"][t]
            found.append(min(max(guide, -0.1), 0.1) - 0.2 * kl)
        found[-1] += min(max(row["score"], -0.9), 0.9)
        return found

    def formula(rows):
        losses = [0.0] * len(rows)
        for members in by_group(rows).values():
            returns = {i: sum(rewards(rows[i])) for i in members}
            for i in members:
                others = [returns[j] for j in members if j != i]
                if not others:
                    continue
                terms = []
                for t in range(len(rows[i]["policy"])):
                    a = sum(rewards(rows[i])[t:]) - sum(others) / len(others)
                    u = math.exp(rows[i]["policy"][t] - rows[i]["previous"][t])
                    terms.append(min(u * a, min(max(u, 1 - clip), 1 + clip) * a))
                losses[i] = -sum(terms) / len(terms)
        return losses

    assert_is(objective, rows, formula)
    clipped = objective(tensors(rows)).metrics["clipped"]
    assert 0 < clipped.sum() < len(rows)


def test_without_clip_the_guides_share_is_its_log_ratio(golden, tensors):
    rows = golden(0, 1, score=[0.0, 0.0])
    found = RTO(guide_beta=0.3, guide_clip=100.0, kl_beta=0.0)(tensors(rows)).metrics["return"]
    wanted = [0.3 * (sum(r["guide"]) - sum(r["reference"])) for r in rows]
    assert found.tolist() == pytest.approx(wanted)
    same = replace(tensors(rows), guide=tensors(rows).reference)
    none = RTO(guide_beta=0.0)(tensors(rows)).metrics["return"]
    assert RTO()(same).metrics["return"].tolist() == pytest.approx(none.tolist())


def test_a_constant_of_the_prompt_changes_nothing(random_rows, tensors):
    rows = random_rows(3)
    shifted = [{**r, "score": r["score"] + 2.0 * r["group"] - 3.0} for r in rows]
    found, wanted = (RTO(score_clip=50.0)(tensors(given)).loss for given in (shifted, rows))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    cut = RTO(score_clip=0.5)(tensors(shifted)).loss
    assert not torch.allclose(cut, wanted)


def test_the_last_token_of_a_row():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]], dtype=torch.bool)
    assert is_last(mask).int().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
