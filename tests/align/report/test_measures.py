"""Reading metrics.json: what is refused, and when two intervals are apart."""

import json

import pytest

from align.errors import DataError
from align.report.measures import MEASURES, Estimate, metrics_from, read_metrics


def metrics(**after):
    return {"before": {}, "after": after}


def test_values_intervals_and_gaps_are_read(tmp_path):
    node = {
        "before": {"preference/margin": {"value": 0, "low": None, "high": None, "n": 7}},
        "after": {"preference/margin": None, "sums/kl_to_reference": {"value": None}},
        "n": 7,
        "seed": 2,
        "versions": {"trl": "1.16.0"},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(node))
    run = read_metrics(tmp_path)
    assert run.name == tmp_path.name
    assert run.before == {"preference/margin": Estimate(0, None, None, 7)}
    assert run.after == {}
    assert (run.n, run.seed, run.versions) == (7, 2, {"trl": "1.16.0"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"before": {}, "after": {"x": {"value": NaN}}}', "NaN is not JSON"),
        ("[1]", '"before" and "after"'),
        ('{"before": {}, "after": []}', "after must map names to values"),
        ('{"before": {}, "after": {"x": 0.5}}', 'x must be {"value"'),
        ('{"before": {}, "after": {"x": {"value": "0.5"}}}', "value must be a finite number"),
        ('{"before": {}, "after": {"x": {"value": true}}}', "value must be a finite number"),
        ('{"before": {}, "after": {"x": {"value": 1e999}}}', "value must be a finite number"),
        ('{"before": {}, "after": {"x": {"value": 1, "low": 0}}}', "both ends or neither"),
        ('{"before": {}, "after": {"x": {"value": 1, "low": 2, "high": 3}}}', "no interval around"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, text, says):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(DataError) as raised:
        read_metrics(tmp_path)
    assert says in str(raised.value)
    assert "metrics.json" in str(raised.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.json does not exist"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "apart"),
    [(0.5, 0.6, True), (0.4, 0.6, False), (0.1, 0.2, True), (None, None, None)],
)
def test_intervals_that_touch_overlap(low, high, apart):
    value = 0.5 if low is None else (low + high) / 2
    other = Estimate(0.35, 0.3, 0.4, 10)
    estimate = Estimate(value, low, high, 10)
    assert estimate.is_apart_from(other) is apart
    assert other.is_apart_from(estimate) is apart


def test_shown_numbers_have_their_unit_and_no_minus_zero():
    by_key = {measure.key: measure for measure in MEASURES}
    assert by_key["sums/sampled_accuracy"].shown(0.3852) == "38.5"
    assert by_key["preference/margin"].shown(-0.0004) == "0.000"
    assert by_key["preference/chosen_logps"].shown(-4.126) == "-4.13"


def test_the_names_are_those_of_metrics_json():
    assert {measure.key for measure in MEASURES} == {
        "sums/greedy_accuracy",
        "sums/sampled_accuracy",
        "styles/exploitability",
        "styles/win_rate",
        "styles/well_formed",
        "styles/kl_to_reference",
        "preference/chosen_logps",
        "preference/rejected_logps",
        "preference/margin",
        "preference/accuracy",
        "sums/kl_to_reference",
        "scenes/hallucination_rate",
        "scenes/coverage",
        "shapes/reward",
        "shapes/red",
        "shapes/quality",
        "denoising/chosen_error",
        "denoising/rejected_error",
        "answers/kl_to_start",
        "answers/length",
        "answers/finished",
        "sft/nll_per_token",
        "sft/perplexity",
        *(
            f"{kind}/{name}"
            for kind in ("reward", "preference_model")
            for name in ("accuracy", "margin", "log_loss", "calibration_error")
        ),
    }
    run = metrics_from(metrics(other={"value": 1.0}), name="x", where="here")
    assert run.after["other"].value == 1.0
