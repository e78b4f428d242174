"""`{run: answers}`: KL to the start, length and ending of what a policy samples."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from align.errors import DataError, RecipeError
from align.evaluation import Weights
from align.policies.start import AdapterOff, Start
from align.recipe import load_recipe
from align.recipe.sections import Evaluate
from align.stages.evaluate import measurements
from align_eval.answers import Answers

ASKED = Answers(n=7, max_new_tokens=12)


def measured(subject, node=ASKED) -> dict:
    return measurements([node], subject)


def beside(policy, start, tokenizer):
    return lambda: Weights(policy, tokenizer, Start.in_memory(start))


def constant(tokenizer, goes_on: float):
    """A model that writes one letter with probability `goes_on`, else ends, whatever it reads."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    letter = tokenizer.encode("1", add_special_tokens=False)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Every layer adds nothing to a one, which the last norm keeps: the logits are row sums.
        model.model.embed_tokens.weight.fill_(1)
        model.model.norm.weight.fill_(1)
        head = model.lm_head.weight
        head.fill_(-40 / 16)
        head[letter] = math.log(goes_on) / 16
        head[tokenizer.eos_token_id] = math.log1p(-goes_on) / 16
    return model


def test_of_a_known_policy_it_is_what_the_arithmetic_says(miniature, subject_of):
    """An answer of L letters that ended has L log(p/q) + log((1-p)/(1-q)) nats; one that was cut
    off has the first term alone."""
    tokenizer = miniature[3]
    p, q = 0.85, 0.6
    policy, start = constant(tokenizer, p), constant(tokenizer, q)
    found = measured(subject_of(weights=beside(policy, start, tokenizer)))
    kl, length, finished = (
        found[f"answers/{name}"] for name in ("kl_to_start", "length", "finished")
    )
    # Some end and some are cut off at 12, else one of the two terms would not be seen.
    assert 0 < finished["value"] < 1
    assert 0 < length["value"] < 12
    by_hand = length["value"] * math.log(p / q) + finished["value"] * math.log((1 - p) / (1 - q))
    assert kl["value"] == pytest.approx(by_hand, abs=1e-4)
    assert kl["low"] < kl["value"] < kl["high"]
    assert {one["n"] for one in found.values()} == {7}


def test_an_answer_that_ends_at_once_has_no_length_and_one_log_prob(miniature, subject_of):
    tokenizer = miniature[3]
    policy, start = constant(tokenizer, 1e-9), constant(tokenizer, 0.5)
    found = measured(subject_of(weights=beside(policy, start, tokenizer)))
    assert found["answers/length"]["value"] == 0
    assert found["answers/finished"]["value"] == 1
    assert found["answers/kl_to_start"]["value"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_model_is_at_no_distance_from_itself(miniature, subject_of):
    """To the last bit: the model, a copy of it, and its base under an adapter that does nothing."""
    _, policy, _, tokenizer = miniature
    adapted = get_peft_model(
        copy.deepcopy(policy), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for model, start in (
        (policy, policy),
        (policy, copy.deepcopy(policy)),
        (adapted, AdapterOff(adapted)),
    ):
        found = measured(subject_of(weights=beside(model, start, tokenizer)))
        kl = found["answers/kl_to_start"]
        assert (kl["value"], kl["low"], kl["high"]) == (0.0, 0.0, 0.0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    found = measured(subject_of(weights=beside(adapted, AdapterOff(adapted), tokenizer)))
    assert found["answers/kl_to_start"]["value"] != 0.0


def test_each_prompt_is_asked_once_and_draws_its_own_numbers(miniature, held_out, subject_of):
    """Whatever stands beside it: so two policies are compared prompt by prompt."""
    whole = ASKED.sampled(subject_of())
    twice = ASKED.sampled(subject_of(held_out=[*held_out, *held_out]))
    assert len(whole.lengths) == 7
    assert torch.equal(twice.lengths, whole.lengths)
    few = replace_n(3).sampled(subject_of(held_out=held_out[2:]))
    assert torch.equal(few.lengths, whole.lengths[2:5])
    torch.testing.assert_close(few.policy.total(), whole.policy.total()[2:5])
    other = ASKED.sampled(subject_of(seed=1))
    assert not torch.equal(other.policy.total(), whole.policy.total())


def replace_n(n: int) -> Answers:
    return ASKED.model_copy(update={"n": n})


def test_the_policy_is_left_as_it_was(miniature, subject_of):
    policy = miniature[1]
    policy.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = measured(subject_of())
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert measured(subject_of()) == first
    policy.eval()


def test_what_cannot_be_measured_is_refused(held_out, subject_of):
    with pytest.raises(RecipeError, match="no held-out pairs"):
        measured(subject_of(held_out=[]))
    with pytest.raises(RecipeError, match="answers reads the model's log-probs"):
        measured(subject_of(weights=None))
    shown = held_out[0].pair.model_copy(update={"images": ("a.png",)})
    with pytest.raises(RecipeError, match="show pictures"):
        measured(subject_of(held_out=[replace(held_out[0], pair=shown)]))
    long = Answers(max_new_tokens=100_000)
    with pytest.raises(DataError, match=r"100000 tokens, .* Lower max_new_tokens"):
        measured(subject_of(), long)


def test_a_suite_names_it_by_a_word_or_with_keys_and_then_wants_pairs(tmp_path):
    for entry, node in (("answers", Answers()), ({"run": "answers", "n": 16}, Answers(n=16))):
        found = Evaluate.model_validate({"suite": [entry]})
        assert found.nodes() == [node]
        assert found.needs_pairs
        with pytest.raises(RecipeError, match=r"answers needs rows to evaluate on.*answers out"):
            build_recipe(entry, tmp_path)


def build_recipe(entry, folder):
    recipe = {
        "model": {"model_name_or_path": "m"},
        "roles": {"reference": "start"},
        "data": {"pairs": "p.jsonl", "held_out": 0},
        "objective": {"name": "dpo"},
        "evaluate": {"suite": [entry]},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    return load_recipe(file)
