"""NFT: golden rows, the formula in plain Python, on-policy GRPO and Dr. GRPO, its limits."""

import math
from dataclasses import replace

import pytest
import torch

from align.errors import DataError
from align.objectives import NFT, GroupRelative


def of_rate_a_quarter(golden):
    """One right answer and three wrong ones: chosen 0, then rejected 0, chosen 1, rejected 1."""
    return golden(0, 1, 2, 3, score=[1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("floor", "wrong", "gradient"),
    [
        # u of rejected 0: exp([-0.05, 0.1, -0.15, 0.05]); v = (1 - u / 4) / 0.75 =
        # [1.0162568585, 0.9649430273, 1.0464306745, 0.982909632]; floored at 1, two logs remain:
        # 0.0161261361 + 0.0453850102 = 0.0615111463
        # dL/dlogp = 0.75 (u / 3) / max(v, floor)
        (1.0, -0.0615111463, [0.2340031992, 0.2762927295, 0.2056294787, 0.2628177741]),
        # not floored: 0.0161261361 - 0.0356862182 + 0.0453850102 - 0.0172380915 = 0.0085868366
        (0.1, -0.0085868366, [0.2340031992, 0.286330614, 0.2056294787, 0.2673875246]),
    ],
)
def test_golden(floor, wrong, gradient, golden, tensors, gradients, dtype):
    inputs = tensors(of_rate_a_quarter(golden), dtype)
    loss, found = gradients(NFT(floor=floor, divisor=1.0), inputs)
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    atol = 1e-10 if dtype == torch.float64 else 1e-6
    # d of chosen 0 sums to 0.1, and both are weighed by 1 - r = 0.75
    wanted = 0.75 * torch.tensor([-0.1, wrong], dtype=dtype)
    torch.testing.assert_close(loss[:2], wanted, rtol=rtol, atol=atol)
    total = -0.1211333597 if floor == 1.0 else -0.0814401274
    assert loss[:2].sum().item() == pytest.approx(total, abs=1e-6)
    rows = 4 * found  # of the sum over completions, not the mean
    right = torch.tensor([-0.75, -0.75, -0.75, 0.0], dtype=dtype)
    torch.testing.assert_close(rows[0], right, rtol=rtol, atol=atol)
    torch.testing.assert_close(rows[1], torch.tensor(gradient, dtype=dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("weight", ["dr_grpo", "grpo", "one"])
@pytest.mark.parametrize("verdict", ["score", "label"])
def test_it_is_the_formula_in_plain_python(
    weight, verdict, random_rows, by_group, tensors, gradients
):
    rows = random_rows(0, sizes=(4, 2, 1, 3), scores=[1.0, 0.0, 0.0])
    column = (lambda r: r["score"] == 1) if verdict == "score" else (lambda r: r["label"])
    objective = NFT(weight=weight, verdict=verdict, negative_weight=0.6, floor=0.9, divisor=50.0)
    loss, found = gradients(objective, tensors(rows))
    n = len(rows)
    for members in by_group(rows).values():
        r = sum(column(rows[i]) for i in members) / len(members)
        w = {"dr_grpo": 1 - r, "grpo": math.sqrt((1 - r) / r) if r else 0.0, "one": 1.0}[weight]
        for i in members:
            total = 0.0
            for t, (new, old) in enumerate(
                zip(rows[i]["policy"], rows[i]["previous"], strict=True)
            ):
                u = math.exp(new - old)
                if r in (0, 1):
                    slope = 0.0
                elif column(rows[i]):
                    total += new - old
                    slope = -w
                else:
                    v = max((1 - r * u) / (1 - r), 0.9)
                    total += 0.6 * math.log(v)
                    slope = 0.6 * w * r * u / (1 - r) / v  # the slope of v, floored or not
                assert found[i, t].item() == pytest.approx(slope / 50 / n, abs=1e-14)
            assert loss[i].item() == pytest.approx(-w * total / 50, abs=1e-14)


def test_a_floored_token_keeps_its_slope(of_rho, tensors, gradients):
    # u = e, r = 1/2: v = 2 - e < 0, floored at 1: log 1 = 0; slope 0.5 e / 0.5 / 1 = e
    inputs = tensors(of_rho([0.0, 1.0], score=[1.0, 0.0]))
    loss, found = gradients(NFT(weight="one", divisor=1.0), inputs)
    assert loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-15)
    assert (2 * found[:, 0]).tolist() == pytest.approx([-1.0, math.e])
    assert NFT()(inputs).metrics["floored"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("weight", "scale"), [("dr_grpo", "none"), ("grpo", "population_deviation")]
)
def test_on_policy_it_is_the_loss_of_its_weight(weight, scale, golden, tensors, gradients):
    rows = [{**row, "previous": row["policy"]} for row in of_rate_a_quarter(golden)]
    inputs = tensors(rows)
    _, nft = gradients(NFT(weight=weight, divisor=7.0), inputs)
    _, grpo = gradients(GroupRelative(scale=scale, divisor=7.0), inputs)
    if weight == "grpo":
        deviation = math.sqrt(0.25 * 0.75)
        grpo = grpo * (deviation + 1e-4) / deviation  # which is added there
    torch.testing.assert_close(nft, grpo, rtol=1e-12, atol=1e-15)
    advantage = {"dr_grpo": [-0.75, 0.25], "grpo": [-math.sqrt(3), 1 / math.sqrt(3)]}[weight]
    assert (4 * 7 * nft[:2, 0]).tolist() == pytest.approx(advantage)


def test_without_negatives_it_is_likelihood_of_right_answers(golden, tensors, gradients):
    inputs = tensors(of_rate_a_quarter(golden))
    _, found = gradients(NFT(negative_weight=0.0, weight="one", divisor=1.0), inputs)
    assert (4 * found[0, :3]).tolist() == pytest.approx([-1.0] * 3)
    assert not found[1:].any()


def test_all_right_or_all_wrong_is_a_loss_of_0_with_a_graph(golden, tensors, gradients):
    for verdict in (0.0, 1.0):
        inputs = tensors(golden(0, 1, 2, score=[verdict] * 3))
        loss, gradient = gradients(NFT(), inputs)
        assert not loss.any()
        assert not gradient.any()
        assert NFT()(inputs).metrics["success_rate"].tolist() == [verdict] * 3


def test_rates_end_at_2_and_98_percent(of_rho, tensors, gradients):
    # 1 of 100 right: r = 0.01 is taken for 0.02
    inputs = tensors(of_rho([0.0] * 100, score=[1.0] + [0.0] * 99))
    _, found = gradients(NFT(divisor=1.0), inputs)
    assert (100 * found[:2, 0]).tolist() == pytest.approx([-0.98, 0.02])
    other = replace(inputs, score=1 - inputs.score)
    _, found = gradients(NFT(divisor=1.0), other)
    assert (100 * found[:2, 0]).tolist() == pytest.approx([0.02 * 0.98 / 0.02, -0.02])


def test_a_wrong_token_far_beyond_previous_has_no_gradient(of_rho, tensors, gradients):
    inputs = tensors(of_rho([30.0, 10.5, 9.5], score=[1.0, 0.0, 0.0]))
    loss, found = gradients(NFT(divisor=1.0), inputs)
    assert loss.isfinite().all()
    assert found[0, 0] < 0
    assert found[1, 0] == 0
    assert found[2, 0] > 0


def test_scores_that_are_no_verdicts_are_refused(golden, tensors):
    inputs = tensors(golden(0, 1, score=[1.0, 0.5]))
    with pytest.raises(DataError, match=r"Completion 1 .* score 0\.5, but `nft` reads 1 as right"):
        NFT()(inputs)
    assert NFT(verdict="label").needs == {"previous", "label"}
    assert NFT().needs == {"previous", "score"}
