"""ReMax: golden row, the formula in plain Python, tokens of the step whatever the passes."""

from dataclasses import replace

import pytest
import torch

from align.objectives import ReMax


def test_golden(golden, tensors, assert_golden, dtype):
    # A = 1.5 - 0.6 = 0.9, and the policy is `previous`: KL terms -0.05 [0.1, -0.2, 0.3], returns
    # [0.895, 0.91, 0.885]; loss (0.895 * 0.9 + 0.91 * 1.3 + 0.885 * 0.4) / 3 = 2.3425 / 3
    rows = golden(0, advantage=[0.9])
    rows[0]["previous"] = rows[0]["policy"]
    assert_golden(
        ReMax(kl_beta=0.05),
        tensors(rows, dtype),
        [0.7808333333],
        [[-0.2983333333, -0.3033333333, -0.295]],
    )


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_it_is_the_formula_in_plain_python(gamma, random_rows, tensors, assert_is):
    rows = random_rows(0)
    mean = sum(len(r["policy"]) for r in rows) / len(rows)

    def formula(rows):
        losses = []
        for r in rows:
            cut, total, length = min(max(r["advantage"], -0.5), 0.5), 0.0, len(r["policy"])
            for t in range(length):
                kl = r["previous"][t] - r["reference"][t]
                total += (gamma ** (length - t) * cut - 0.3 * kl) * r["policy"][t]
            losses.append(-total / mean)
        return losses

    assert_is(ReMax(kl_beta=0.3, clip=0.5, gamma=gamma), rows, formula)
    found = ReMax(kl_beta=0.3, clip=0.5)(tensors(rows))
    cut = [float(abs(r["advantage"]) > 0.5) for r in rows]
    assert found.metrics["clipped"].tolist() == cut
    assert 0 < sum(cut) < len(rows)


def test_the_mean_over_completions_is_the_mean_over_tokens(random_rows, tensors):
    rows = random_rows(1)
    tokens = sum(len(r["policy"]) for r in rows)
    loss = ReMax(kl_beta=0.0)(tensors(rows)).loss.mean().item()
    gain = sum(min(max(r["advantage"], -5), 5) * sum(r["policy"]) for r in rows)
    assert loss == pytest.approx(-gain / tokens, abs=1e-14)


def test_a_step_in_parts_is_the_step(random_rows, tensors):
    objective, rows = ReMax(), random_rows(2)
    whole = tensors(rows)
    given, carried = objective.couple(objective.measured(whole), {})
    assert carried == {}
    mean = sum(len(r["policy"]) for r in rows) / len(rows)
    assert given[:, 0].tolist() == pytest.approx([mean] * len(rows))
    found = [
        objective(replace(tensors(rows[part]), coupling=given[part])).loss
        for part in (slice(0, 4), slice(4, 6), slice(6, 10))
    ]
    torch.testing.assert_close(torch.cat(found), objective(whole).loss, rtol=0, atol=1e-14)
    alone = objective(tensors(rows[:4])).loss
    assert not torch.allclose(alone, found[0])


def test_the_greedy_answer_itself_moves_nothing(golden, tensors, gradients):
    rows = golden(0, 1, advantage=[0.0, 0.0])
    _, gradient = gradients(ReMax(kl_beta=0.0), tensors(rows))
    assert not gradient.any()


def test_needs_hang_on_the_kl_term():
    assert ReMax().needs == {"advantage", "previous", "reference"}
    assert ReMax(kl_beta=0.0).needs == {"advantage"}
