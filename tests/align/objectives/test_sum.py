"""Sum: golden row, one part, what each part reads, names of metrics, and nested faults."""

from pathlib import Path

import pytest
import torch

from align.errors import RecipeError
from align.objectives import (
    DPO,
    ODPO,
    ORPO,
    RPO,
    TDPO,
    WPO,
    ChosenNLL,
    Hinge,
    Sum,
    objective_from,
)
from align.objectives.sum import Part


def test_golden(golden, assert_golden, dtype):
    # 0.8 dpo + 0.5 nll = 0.8 [0.6733471672, 0.6539469673] + 0.5 [2.6/3, 4.1/4]
    # dL/dlogp_chosen = 0.8 [-0.0245000667, -0.024000533] - 0.5 / [3, 4] / 2
    node = {
        "name": "sum",
        "of": [
            {"weight": 0.8, "objective": {"name": "dpo", "beta": 0.1}},
            {"weight": 0.5, "objective": {"name": "chosen_nll"}},
        ],
    }
    assert_golden(
        objective_from(node),
        golden(dtype),
        1.0038343205,
        [0.9720110671, 1.0356575739],
        [-0.1029333867, -0.0817004264],
        [0.0196000533, 0.0192004264],
    )


@pytest.mark.parametrize("part", [DPO(beta=0.3), RPO(), ORPO()])
def test_a_sum_of_one_is_that_one(golden, part):
    found, wanted = Sum(of=(Part(objective=part),))(golden()), part(golden())
    assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(found.reward.chosen, wanted.reward.chosen)
    assert torch.equal(found.reward.rejected, wanted.reward.rejected)


def test_it_needs_and_accepts_what_its_parts_do():
    free = Sum(of=(Part(objective=ORPO()), Part(objective=ChosenNLL())))
    assert (free.needs, free.accepts) == (set(), set())
    mixed = Sum(of=(Part(objective=DPO()), Part(objective=ODPO()), Part(objective=Hinge())))
    assert (mixed.needs, mixed.accepts) == ({"reference", "score"}, {"preference", "token_weight"})


def test_a_preference_softens_the_part_that_accepts_it(golden):
    p = torch.tensor([0.8, 0.3], dtype=torch.float64)
    mixture = Sum(of=(Part(weight=2.0, objective=DPO()), Part(objective=Hinge())))
    found = mixture(golden(preference=p)).loss
    wanted = 2 * DPO()(golden(preference=p)).loss + Hinge()(golden()).loss
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)


def test_rewards_are_added_by_weight(golden):
    mixture = Sum(of=(Part(weight=0.8, objective=DPO(beta=0.5)), Part(objective=ORPO())))
    reward = mixture(golden()).reward
    # 0.8 0.5 rho + log-odds, see ORPO's golden row
    assert reward.chosen.tolist() == pytest.approx([0.08 - 0.3213351975, 0.2 - 0.5805916542])
    assert reward.rejected.tolist() == pytest.approx([-0.08 - 0.7692712557, -0.12 - 0.9124204349])


def test_metrics_are_named_part_by_part(golden):
    mixture = Sum(
        of=(
            Part(weight=0.8, objective=RPO()),
            Part(objective=DPO(beta=0.1)),
            Part(objective=DPO(beta=0.5)),
        )
    )
    metrics = mixture(golden()).metrics
    assert [*metrics] == ["rpo/loss", "rpo/nll/chosen", "dpo_1/loss", "dpo_2/loss"]
    assert metrics["dpo_2/loss"].tolist() == pytest.approx([0.5981388694, 0.5130152524])
    assert metrics["rpo/loss"].tolist() == RPO()(golden()).loss.tolist()  # not weighed


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ([{"weight": -1, "objective": {"name": "dpo"}}], [r"`objective\.of\.0\.weight` is -1: "]),
        (
            [{"objective": {"name": "dpo"}}, {"objective": {"name": "dpo", "betta": 1}}],
            [r"`objective\.of\.1\.objective\.betta` is no field of `dpo` \(did you mean `beta`"],
        ),
        (
            [{"objective": {"name": "rpo", "form": "mean", "beta": 0}}],
            [
                r"`objective\.of\.0\.objective\.form` is 'mean': .*'cumulative' or",
                r"`objective\.of\.0\.objective\.beta` is 0: .*greater than 0",
            ],
        ),
        (
            [{"objective": {"name": "sum", "of": [{"objective": {"name": "dpo", "beta": 0}}]}}],
            [r"`objective\.of\.0\.objective\.of\.0\.objective\.beta` is 0"],
        ),
        ([{"objective": {"name": "dpoo"}}], [r"`objective\.of\.0\.objective`.*did you mean `dpo`"]),
        ([{"weight": 1}], [r"`objective\.of\.0\.objective`.*required"]),
        ([{"objective": {"name": "dpo"}, "weigt": 1}], [r"`objective\.of\.0\.weigt` is no field"]),
        ([], [r"`objective\.of`.*at least 1 term"]),
    ],
)
def test_what_is_wrong_within_is_named_by_its_key(of, said):
    for one in said:
        with pytest.raises(RecipeError, match=one):
            objective_from({"name": "sum", "of": of})


def test_a_part_may_be_of_a_file_and_its_code_counts(tmp_path: Path):
    from align import registry

    file = tmp_path / "mine.py"
    file.write_text(
        "from align.objectives import DPO\n\n\nclass Mine(DPO, frozen=True):\n    pass\n"
    )
    own = {"name": f"{file}:Mine", "beta": 0.2}
    mixture = objective_from({"name": "sum", "of": [{"objective": own}]})
    assert mixture.model_dump()["of"][0]["objective"]["beta"] == 0.2
    assert registry.code_of(mixture) == registry.code_of(objective_from(own)) is not None
    assert registry.code_of(Sum(of=(Part(objective=DPO()),))) is None


def test_golden_of_a_term_that_counts_by_wpos_weights(golden, assert_golden, aligned, dtype):
    # w_c w_r = [0.7659283384 0.670320046, 0.7408182207 0.6065306597] of test_wpo, on hinge's
    # 1 - 0.1 [0.4, 0.8], times 0.5; dL/dlogp_chosen = -0.5 w_c w_r 0.1 / 2
    part = Part(weight=0.5, pair_weight="wpo", objective=Hinge(beta=0.1))
    assert_golden(
        Sum(of=(part,)),
        aligned(golden(dtype)),
        0.2265657703,
        [0.2464402171, 0.2066913235],
        [-0.012835428, -0.0112332241],
        [0.012835428, 0.0112332241],
    )


def test_a_pair_weight_is_that_terms_alone(golden, aligned):
    weighted = Part(pair_weight="wpo", objective=DPO())
    both = Sum(of=(weighted, Part(weight=2.0, objective=Hinge())))
    assert both.vocabulary == {"collision"}
    assert Sum(of=(Part(objective=DPO()),)).vocabulary == set()
    inputs = aligned(golden())
    found = both(inputs)
    wanted = WPO(alignment="sampled")(inputs).loss + 2 * Hinge()(inputs).loss
    torch.testing.assert_close(found.loss, wanted)
    assert found.metrics["weights/chosen"].tolist() == pytest.approx([0.7659283384, 0.7408182207])


def test_it_needs_of_the_vocabulary_what_its_parts_do():
    parts = (Part(objective=TDPO()), Part(pair_weight="wpo", objective=Hinge()))
    assert Sum(of=parts).vocabulary == {"collision", "divergence"}
    with pytest.raises(RecipeError, match="pair_weight"):
        objective_from(
            {"name": "sum", "of": [{"pair_weight": "wpoo", "objective": {"name": "dpo"}}]}
        )
