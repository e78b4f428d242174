"""The word `preference` of a suite: what log-probs say about held-out pairs."""

import json
from dataclasses import replace

import pytest
import torch

from align.errors import RecipeError
from align.evaluation import Weights
from align.forest import TokenRow, score_rows
from align.policies.start import Start
from align.reference import Identity
from align.stages.evaluate import measurements
from align.types import Pair
from align_eval import preference
from align_eval.metrics import preference_metrics
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


@pytest.mark.parametrize("budget", [None, 40, 1000, "auto"])
def test_it_does_not_follow_how_pairs_are_packed(miniature, held_out, subject_of, budget):
    """The numbers are those of padded rows."""
    _, policy, reference, _ = miniature
    pairs = held_out[:6]
    sides = [
        [TokenRow(pair.prompt_ids, getattr(pair, f"{side}_ids")) for pair in pairs]
        for side in ("chosen", "rejected")
    ]
    by_hand = preference_metrics(
        *(Pair(*(score_rows(m, rows) for rows in sides)) for m in (policy, reference))
    )
    for at_once in (1, 4, 64):
        report = measured(subject_of(token_budget=budget, pairs_at_once=at_once))
        for metric, estimate in by_hand.items():
            assert report[f"preference/{metric}"] == pytest.approx(estimate.to_json(), abs=2e-5)


class Run:
    """A run's evaluations of two policies; what goes through the start is counted."""

    def __init__(self, miniature, subject_of):
        _, self.policy, self.start, self.tokenizer = miniature
        self.subject_of = subject_of
        self.scored = []
        self.loaded = 0

    def load(self):
        self.loaded += 1
        return self.start

    def before(self, identity, **changes):
        start = Start.in_memory(self.start, identity)
        return self.measured(Weights(self.start, self.tokenizer, start), changes)

    def after(self, identity, **changes):
        start = Start(identity, self.load)
        return self.measured(Weights(self.policy, self.tokenizer, start), changes)

    def measured(self, weights, changes):
        return measured(self.subject_of(weights=lambda: weights, **changes))


@pytest.fixture
def run(miniature, subject_of, monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    found = Run(miniature, subject_of)
    score = preference.score_pairs

    def counted(model, rows, *args, **kwargs):
        found.scored.append(("start" if model is found.start else "policy", len(rows.chosen)))
        return score(model, rows, *args, **kwargs)

    monkeypatch.setattr(preference, "score_pairs", counted)
    return found


WHO = Identity(source="start", weights="w", tokenizer="t", dtype="float32/no")


def test_the_start_is_scored_once_for_before_after_and_whoever_comes_later(run):
    before = run.before(WHO)
    after = run.after(WHO)
    assert run.scored == [("start", 6), ("policy", 6)]
    # A resumed run, another run, or the next round of a loop.
    assert run.before(WHO) == before
    assert run.after(WHO) == after
    assert run.scored == [("start", 6), ("policy", 6), ("policy", 6)]
    assert run.loaded == 0
    assert before["preference/margin"]["value"] == 0.0
    # The same without anything kept.
    fresh = run.after(None)
    assert run.loaded == 1
    for metric, estimate in after.items():
        assert estimate == pytest.approx(fresh[metric], abs=1e-6)


def test_a_policy_equal_to_its_start_is_at_distance_zero(run):
    """To the last bit: the kept scores have the layout of the policy's own."""
    run.before(WHO)
    run.policy = run.start
    found = run.after(WHO)
    assert run.loaded == 0
    assert found["preference/margin"] == run.before(WHO)["preference/margin"]
    assert found["preference/chosen_logratio"]["low"] == 0.0


def test_what_is_kept_belongs_to_a_start_its_rows_and_their_layout(run, held_out):
    run.before(WHO, token_budget=1000)
    for identity, changes in (
        (replace(WHO, weights="other"), {"token_budget": 1000}),
        (WHO, {"token_budget": 1000, "n": 5}),
        (WHO, {"token_budget": 1000, "held_out": held_out[::-1]}),
        (WHO, {"token_budget": 40}),
        (WHO, {"token_budget": None}),
        (WHO, {"token_budget": None, "pairs_at_once": 2}),
        (WHO, {"token_budget": "auto"}),
    ):
        run.scored.clear()
        run.after(identity, **changes)
        assert [who for who, _ in run.scored] == ["policy", "start"], changes
    run.scored.clear()
    run.after(WHO, token_budget=1000, pairs_at_once=2)
    assert [who for who, _ in run.scored] == ["policy"]


def test_scores_that_were_damaged_are_made_again(run, tmp_path):
    expected = run.before(WHO)
    (folder,) = (tmp_path / "roles").iterdir()
    arrow = next(folder.rglob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-8])
    assert run.before(WHO) == expected
    assert [who for who, _ in run.scored] == ["start", "start"]


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
