import pytest
from pydantic import ValidationError

from align_data.uncertainty.settings import UncertaintySettings


def test_the_defaults_stand_together():
    node = UncertaintySettings()
    assert UncertaintySettings.model_validate(node.model_dump(mode="json")) == node
    assert (node.select.rule, node.order, node.smoothing.mode) == (
        "agree+topk", "both", "information",
    )  # fmt: skip


def test_the_published_program_can_be_written_down():
    node = UncertaintySettings.model_validate(
        {
            "rewards": {"by": "reward_model", "path": "some/reward-model"},
            "reference_answer": "add",
            "candidates": "extremes",
            "estimated": 0.25,
            "order": "chosen_first",
            "estimator": {"kind": "classifier", "train_dropout": 0.0},
            "select": {"rule": "legacy"},
            "smoothing": {"mode": "none"},
            "replay": 0.4,
            "dedupe": "prompt",
        }
    )
    assert node.select.far == 0.3


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"selekt": {}}, "selekt"),
        ({"passes": 1}, "greater than or equal to 2"),
        ({"estimator": {"kind": "classifier", "lora": None}}, "there is no adapter"),
        ({"estimator": {"kind": "classifier", "dropout": 0}}, "greater than 0"),
        ({"estimator": {"kind": "likelihood", "lora": {}}}, "lora"),
        (
            {"estimator": {"kind": "likelihood", "dropout_in": "head", "dropout_blocks": 2}},
            "leaves all blocks whole",
        ),
        ({"estimator": {"kind": "classifier", "template": "{query} {first}"}}, "once, in this"),
        (
            {"estimator": {"kind": "classifier", "template": "{query}{first}{second}?"}},
            "must end with",
        ),
        ({"select": {"rule": "legacy"}, "agreement": "first_pass"}, "drops them early"),
        (
            {"select": {"rule": "mu", "agreement": "ignored"}, "agreement": "first_pass"},
            "does not read it",
        ),
        ({"smoothing": {"mode": "information", "mu": 3}}, "does not read it"),
        ({"rewards": {"by": "world", "path": "x"}}, "rewards.path\n  Extra inputs"),
        ({"rewards": {"by": "reward_model"}}, "rewards.path\n  Field required"),
        ({"rewards": {"by": "reward_model", "path": "x", "flips": 0.2}}, "turned over"),
        ({"rewards": {"by": "world", "pattern": "x"}}, "rewards.pattern\n  Extra inputs"),
    ],
)
def test_what_cannot_stand_together_is_refused_with_a_sentence(node, says):
    with pytest.raises(ValidationError, match=says):
        UncertaintySettings.model_validate(node)
