import json

import pytest
import torch

from align.errors import RecipeError
from align.records import Message, PreferencePair
from align.tokens import TokenizedPair
from align.worlds import sums
from align.worlds.generation import Sample
from align.worlds.sums import solution_of
from eval.suite import run_suite


@pytest.fixture
def held_out(miniature):
    world, _, _, tokenizer = miniature
    pairs = []
    for row, operands in enumerate(world.problems("held_out", 7, seed=0), start=1):
        right, wrong = solution_of(operands), f"{row}+1=2\n2+2=4\n4"
        prompt = sums.prompt_of(operands)
        prompt_ids = sums._prompt_ids(tokenizer, operands)
        sides = [
            [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            for text in (right, wrong)
        ]
        pair = PreferencePair(
            prompt=(Message(role="user", content=prompt),),
            chosen=(Message(role="assistant", content=right),),
            rejected=(Message(role="assistant", content=wrong),),
            source="test",
            row=row,
        )
        pairs.append(TokenizedPair(prompt_ids, *sides, pair))
    return pairs


def suite(miniature, held_out, **settings):
    _, policy, reference, tokenizer = miniature
    defaults = {"reference": reference, "held_out_pairs": held_out, "n": 6, "seed": 0}
    return run_suite(["preference", "sums"], policy, tokenizer, **(defaults | settings))


def test_what_it_reports(miniature, held_out):
    report = suite(miniature, held_out)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {"preference", "sums"}
    assert set(report["sums"]) == {
        "greedy_accuracy",
        "sampled_accuracy",
        "well_formed",
        "kl_to_reference",
    }
    assert {estimate["n"] for estimate in report["sums"].values()} == {6}
    # n bounds the pairs as well: 6 of the 7.
    assert report["preference"]["margin"]["n"] == 6
    assert report["preference"]["margin"]["value"] != 0.0


def test_a_model_is_at_no_distance_from_itself(miniature, held_out):
    report = suite(miniature, held_out, reference=miniature[1])
    assert report["sums"]["kl_to_reference"]["value"] == 0.0
    assert report["preference"]["ties"]["value"] == 1.0
    assert report["preference"]["accuracy"]["value"] is None


def test_it_follows_the_seed_and_not_the_batch_size(miniature, held_out):
    report = suite(miniature, held_out)
    for batch_size in (1, 4, 5):
        again = suite(miniature, held_out, batch_size=batch_size)
        for name, metrics in report.items():
            for metric, estimate in metrics.items():
                assert again[name][metric] == pytest.approx(estimate, abs=2e-5), metric
    assert suite(miniature, held_out, seed=1)["sums"] != report["sums"]


def test_accuracy_counts_what_the_judge_says(miniature, monkeypatch):
    world, policy, reference, tokenizer = miniature
    asked = world.problems("held_out", 4, seed=0)

    def answer(model, prompts, *, end_ids, temperature, **settings):
        # Greedy: all right. Sampled: the first right, the others the answer of another problem.
        texts = [solution_of(asked[i if temperature == 0 else 0]) for i in range(4)]
        return [
            Sample((*tokenizer.encode(text, add_special_tokens=False), *end_ids), True)
            for text in texts
        ]

    monkeypatch.setattr(sums, "sample_completions", answer)
    report = run_suite(
        ["sums"], policy, tokenizer, reference=reference, held_out_pairs=[], n=4, seed=0
    )
    assert report["sums"]["greedy_accuracy"]["value"] == 1.0
    right = sum(sum(operands) == sum(asked[0]) for operands in asked)
    assert right == 1
    assert report["sums"]["sampled_accuracy"]["value"] == 0.25
    assert report["sums"]["well_formed"]["value"] == 1.0


def test_models_and_random_state_are_left_alone(miniature, held_out):
    _, policy, reference, _ = miniature
    policy.train()
    reference.eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    suite(miniature, held_out)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert not reference.training
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.eval()


def test_unknown_names_and_missing_pairs_are_refused(miniature, held_out):
    _, policy, reference, tokenizer = miniature

    def ask(name, pairs):
        run_suite([name], policy, tokenizer, reference=reference, held_out_pairs=pairs, n=2, seed=0)

    with pytest.raises(RecipeError, match="no held-out pairs"):
        ask("preference", [])
    with pytest.raises(RecipeError, match="Did you mean world:sums"):
        ask("sum", held_out)
    with pytest.raises(RecipeError, match="has no judge"):
        ask("bytes", held_out)
