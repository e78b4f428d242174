"""The word `preference` of a suite: what log-probs say about held-out pairs."""

import json

import pytest
import torch

from align.errors import RecipeError
from align.stages.evaluate import measurements
from align_eval import preference
from align_eval.preference import Preference


def measured(subject) -> dict:
    return measurements([Preference()], subject)


def test_what_it_reports(subject_of):
    report = measured(subject_of())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "preference/accuracy",
        "preference/ties",
        "preference/chosen_logps",
        "preference/rejected_logps",
        "preference/chosen_logratio",
        "preference/rejected_logratio",
        "preference/margin",
    }
    # n bounds the pairs: 6 of the 7.
    assert report["preference/margin"]["n"] == 6
    assert report["preference/margin"]["value"] != 0.0
    assert measured(subject_of(n=None))["preference/margin"]["n"] == 7


def test_a_model_is_at_no_distance_from_itself(miniature, subject_of):
    report = measured(subject_of(reference=miniature[1]))
    assert report["preference/ties"]["value"] == 1.0
    assert report["preference/accuracy"]["value"] is None


def test_it_does_not_follow_the_batch_size(subject_of, monkeypatch):
    report = measured(subject_of())
    for batch_size in (1, 4, 5):
        monkeypatch.setattr(preference, "ROWS", batch_size)
        again = measured(subject_of())
        for metric, estimate in report.items():
            assert again[metric] == pytest.approx(estimate, abs=2e-5), metric


def test_models_and_random_state_are_left_alone(miniature, subject_of):
    _, policy, reference, _ = miniature
    policy.train()
    reference.eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measured(subject_of())
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert not reference.training
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.eval()


def test_missing_pairs_and_a_model_behind_a_server_are_refused(subject_of):
    with pytest.raises(RecipeError, match="no held-out pairs"):
        measured(subject_of(held_out=[]))
    with pytest.raises(RecipeError, match="preference reads the model's log-probs"):
        measured(subject_of(weights=None))
