"""What a world measures of a model, by its name in a suite."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from align.errors import RecipeError
from align.policies.sampling import Sample
from align.recipe.sections import Evaluate
from align.stages.evaluate import measurements
from align.worlds import sums
from align.worlds.additions import solution_of
from align_eval.world import WorldMeasure

OWN = """
from align.estimates import proportion
from align.worlds.base import World


class Half(World):
    name = "half"

    def base_model(self):
        raise AssertionError("a measurement builds no model")

    def measure(self, model, tokenizer, *, reference, n, seed):
        return {"share": proportion(n // 2, n)}
"""


def measured(subject, *suite) -> dict:
    return measurements(Evaluate(suite=suite or ("sums",)).nodes(), subject)


def test_what_it_reports(subject_of):
    report = measured(subject_of())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "sums/greedy_accuracy",
        "sums/sampled_accuracy",
        "sums/well_formed",
        "sums/kl_to_reference",
    }
    assert {estimate["n"] for estimate in report.values()} == {6}


def test_a_suite_measures_one_after_the_other(subject_of):
    both = measured(subject_of(), "preference", "sums")
    assert next(iter(both)).startswith("preference/")
    assert both == measured(subject_of(), "preference") | measured(subject_of(), "sums")
    assert measured(subject_of(), {"run": "world", "world": "sums"}) == measured(subject_of())
    assert measured(subject_of(), "world:sums") == measured(subject_of())


def test_a_model_is_at_no_distance_from_itself(miniature, subject_of):
    report = measured(subject_of(reference=miniature[1]))
    assert report["sums/kl_to_reference"]["value"] == 0.0
    assert measured(subject_of())["sums/kl_to_reference"]["value"] != 0.0


def test_it_follows_the_seed_and_not_the_batch_size(subject_of, monkeypatch):
    report = measured(subject_of())
    assert measured(subject_of(seed=1)) != report
    for batch_size in (1, 4, 5):
        monkeypatch.setattr(sums, "ROWS", batch_size)
        again = measured(subject_of())
        for metric, estimate in report.items():
            assert again[metric] == pytest.approx(estimate, abs=2e-5), metric


def test_accuracy_counts_what_the_judge_says(miniature, subject_of, monkeypatch):
    world, _, _, tokenizer = miniature
    asked = world.problems("held_out", 4, seed=0)

    def answer(model, prompts, *, end_ids, temperature, **settings):
        # Greedy: all right. Sampled: the first right, the others the answer of another problem.
        texts = [solution_of(asked[i if temperature == 0 else 0]) for i in range(4)]
        return [
            Sample((*tokenizer.encode(text, add_special_tokens=False), *end_ids), True)
            for text in texts
        ]

    monkeypatch.setattr(sums, "sample_completions", answer)
    report = measured(subject_of(n=4, held_out=[]))
    assert report["sums/greedy_accuracy"]["value"] == 1.0
    right = sum(sum(operands) == sum(asked[0]) for operands in asked)
    assert right == 1
    assert report["sums/sampled_accuracy"]["value"] == 0.25
    assert report["sums/well_formed"]["value"] == 1.0


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


def test_unknown_worlds_and_those_that_measure_nothing_are_refused(subject_of):
    with pytest.raises(ValidationError, match="did you mean `sums`"):
        Evaluate(suite=("sum",))
    with pytest.raises(ValidationError, match=r"did you mean .*world:sums"):
        WorldMeasure(world="sum")
    with pytest.raises(RecipeError, match="world:bytes has no measure"):
        measured(subject_of(), "bytes")
    with pytest.raises(RecipeError, match="behind a server"):
        measured(subject_of(weights=None))


def test_a_world_of_ones_own_is_measured_and_its_code_counts(subject_of, tmp_path: Path):
    path = tmp_path / "half.py"
    path.write_text(OWN)
    word = f"world:{path}:Half"
    (node,) = Evaluate(suite=(word,)).nodes()
    assert measured(subject_of(), word)["half/share"]["value"] == 0.5
    assert node.word == WorldMeasure(world=word).word == word
    # Another content is another measurement; a built-in one is known by its name.
    code = hashlib.sha256(path.read_bytes()).hexdigest()
    assert node.settings() == {"world": word, "code": code}
    assert WorldMeasure(world="world:sums").settings() == "sums"
    path.write_text(OWN.replace("n // 2", "n"))
    assert node.settings()["code"] != code
